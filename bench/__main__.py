"""`make bench`: every figure that needs no GPU, in one run."""

from bench import history, login, page, render, server, streamer


def main() -> None:
    """Print all tables."""
    print("# Figures of this machine")
    for name, part in (
        ("Streamer", streamer.main),
        ("Renderer", render.main),
        ("Server", server.main),
        ("Login", login.main),
        ("Page", page.main),
        ("History", history.main),
    ):
        print(f"\n## {name}", flush=True)
        part()


if __name__ == "__main__":
    main()
