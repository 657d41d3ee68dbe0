"""Many requests on one GPU at once: a paged KV cache, a schedule and a step of ours over transformers' model."""
