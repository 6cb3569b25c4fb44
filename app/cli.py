"""The `kronserve` command. Its subcommands are entry points of the group `kronserve.commands`, imported when used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import cast

GROUP = "kronserve.commands"

EPILOG = """examples:
  kronserve serve --port 8000                          serve ./model_repository
  kronserve config                                     the settings in force, and where each comes from
  kronserve key billing --scope inference >> keys.toml make an API key
  kronserve train hot-etth1                            train a recipe into runs/hot-etth1
  kronserve export runs/hot-etth1 --name hot-etth1 --version 2
  kronserve evaluate hot-etth1                         a bundle's metrics on its test split, as JSON
  kronserve calibrate model_repository/hot-etth1/2     prediction intervals, or a classifier's temperature
  kronserve inspect model_repository/hot-etth1/1       what a bundle holds
  kronserve verify model_repository/hot-etth1/1        whether it is whole and computes what it says

kronserve COMMAND --help tells more of each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kronserve COMMAND ...`; the exit status is the command's."""
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    parser = argparse.ArgumentParser(
        prog="kronserve",
        description="Configure, serve, export, train, evaluate, inspect and verify Kronecker-attention models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=sorted(commands), metavar="COMMAND", help=", ".join(sorted(commands)))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own options")
    chosen = parser.parse_args(argv)
    return _load(commands[chosen.command])(chosen.arguments)


def _load(command: EntryPoint) -> Callable[[Sequence[str]], int]:
    """The command's function, or an exit that names the extra to install."""
    try:
        return cast("Callable[[Sequence[str]], int]", command.load())
    except ModuleNotFoundError as error:
        extra = "export" if command.name in ("export", "inspect", "verify") else "train"
        sys.exit(f"kronserve {command.name} needs {error.name}, install it with: pip install 'kronserve[{extra}]'")
