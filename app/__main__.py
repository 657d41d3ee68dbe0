"""Commands beside the server: `python -m app check | quantize | create-admin | reset-password | purge | backup |
restore`."""

import argparse
import sys
from pathlib import Path

from app.errors import PonderError


def main(arguments: list[str] | None = None) -> int:
    """Run the command that was named; the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except PonderError as error:
        remedy = str(error.details.get("remedy", ""))
        sys.stderr.write(f"{error.message} {remedy}".strip() + "\n")
        return 2


def _run(given: argparse.Namespace) -> int:
    if given.command == "check":
        from app.check import run_check

        return run_check(given.model, given.question, given.thinking_tokens)
    if given.command == "quantize":
        return _quantize(given.model, given.folder)
    from app import keeping

    if given.command == "create-admin":
        return keeping.create_admin(given.name, is_existing=given.existing)
    if given.command == "reset-password":
        return keeping.reset_password(given.name)
    if given.command == "backup":
        return keeping.backup(given.file)
    if given.command == "restore":
        return keeping.restore(given.file, is_confirmed=given.yes)
    return keeping.purge(is_dry=given.dry_run)


def _quantize(model: str, folder: Path) -> int:
    from app.engine.model.quantize import quantize

    stages: list[str] = []

    def tell(stage: str, _: float | None) -> None:
        if stage not in stages:
            stages.append(stage)
            sys.stderr.write(f"{stage} ...\n")

    written = quantize(model, folder, tell)
    sys.stdout.write(f"{written / 2**30:.1f} GiB in {folder}. Start Ponder with PONDER_MODEL={folder}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="load the model, ask it a question, report how it does")
    check.add_argument("--model", help="as PONDER_MODEL")
    check.add_argument("--question", default="How many r in strawberry.")
    check.add_argument("--thinking-tokens", type=int, help="the reasoning budget; the model's own if left out")
    quantized = commands.add_parser("quantize", help="write a model in 4 bits into a folder, for quick starts")
    quantized.add_argument("folder", type=Path)
    quantized.add_argument("--model", default="qwq-32b", help="a known name, a Hub id or a folder")
    admin = commands.add_parser("create-admin", help="make an admin account")
    admin.add_argument("name")
    admin.add_argument("--existing", action="store_true", help="make an admin of the account that has this name")
    reset = commands.add_parser("reset-password", help="a new password for an account; ends its sessions")
    reset.add_argument("name")
    purge = commands.add_parser("purge", help="remove what is over its time: guests, sessions, counters")
    purge.add_argument("--dry-run", action="store_true", help="only say how many of each")
    backup = commands.add_parser("backup", help="copy the SQLite database while Ponder runs")
    backup.add_argument("file", nargs="?", type=Path, help="the copy; left out, one more in the folder snapshots")
    restore = commands.add_parser("restore", help="put a copy in the place of the SQLite database; stop Ponder before")
    restore.add_argument("file", type=Path)
    restore.add_argument("--yes", action="store_true", help="do not ask")
    return parser


if __name__ == "__main__":
    sys.exit(main())
