"""Commands beside the server: `python -m app check | create-admin | reset-password | purge`."""

import argparse
import sys

from app.errors import PonderError


def main(arguments: list[str] | None = None) -> int:
    """Run the command that was named; the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except PonderError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2


def _run(given: argparse.Namespace) -> int:
    if given.command == "check":
        from app.check import run_check

        return run_check(given.model, given.question, given.thinking_tokens)
    from app import keeping

    if given.command == "create-admin":
        return keeping.create_admin(given.name, is_existing=given.existing)
    if given.command == "reset-password":
        return keeping.reset_password(given.name)
    return keeping.purge(is_dry=given.dry_run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="load the model, ask it a question, report how it does")
    check.add_argument("--model", help="as PONDER_MODEL")
    check.add_argument("--question", default="How many r in strawberry.")
    check.add_argument("--thinking-tokens", type=int, help="the reasoning budget; the model's own if left out")
    admin = commands.add_parser("create-admin", help="make an admin account")
    admin.add_argument("name")
    admin.add_argument("--existing", action="store_true", help="make an admin of the account that has this name")
    reset = commands.add_parser("reset-password", help="a new password for an account; ends its sessions")
    reset.add_argument("name")
    purge = commands.add_parser("purge", help="remove what is over its time: guests, sessions, counters")
    purge.add_argument("--dry-run", action="store_true", help="only say how many of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
