"""Where the figures of docs/performance.md come from. Each part prints ratios taken in one run."""
