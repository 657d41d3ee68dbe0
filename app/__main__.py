"""Commands beside the server: `python -m app check [--model MODEL]`."""

import argparse
import sys


def main() -> int:
    """Run the command that was named; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="load the model, ask it a question, report how it does")
    check.add_argument("--model", help="as PONDER_MODEL")
    check.add_argument("--question", default="How many r in strawberry.")
    check.add_argument("--thinking-tokens", type=int, help="the reasoning budget; the model's own if left out")
    given = parser.parse_args()

    from app.check import run_check

    return run_check(given.model, given.question, given.thinking_tokens)


if __name__ == "__main__":
    sys.exit(main())
