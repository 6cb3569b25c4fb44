"""Settings from where operators put them: command line, then KRONSERVE_* variables, then a TOML file, then defaults."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from app.settings import PREFIX, Settings

_LINK = re.compile(rf"{PREFIX}(.*_)?(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP).*)$")
"""What Kubernetes tells a pod about a Service called kronserve."""


def parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with every setting as an option."""
    made = argparse.ArgumentParser(
        prog=f"kronserve {command}",
        description=f"{description} Every option is also the variable in brackets, and a line of the TOML file.",
        epilog=epilog,
    )
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        made.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            metavar=name.split("_")[-1].upper(),
            help=f"{field.description} [{PREFIX}{name.upper()}, default {default}]".replace("%", "%%"),
        )
    return made


def read(parsing: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Settings, dict[str, str]]:
    """The settings in force, and where each that is not at its default comes from. A bad one ends the program."""
    given: dict[str, Any] = vars(parsing.parse_args(argv))
    variables = {key.upper() for key in os.environ}
    sources = {name: f"{PREFIX}{name.upper()}" for name in Settings.model_fields if PREFIX + name.upper() in variables}
    sources |= {name: f"--{name.replace('_', '-')}" for name in given}
    try:
        settings = Settings(**given)
        if settings.config is not None:
            listed = tomllib.loads(settings.config.read_text("utf-8"))
            sources = dict.fromkeys(listed, settings.config.name) | sources
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            parsing.error(first["msg"])
        name = str(first["loc"][0])
        option = f"--{name.replace('_', '-')} ({PREFIX}{name.upper()})"
        # What is neither an option nor a variable stands in the file.
        place = option if name in sources else f"{given.get('config') or os.environ.get(PREFIX + 'CONFIG')}: {name}"
        fault = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        parsing.error(f"{place}: {fault}, got {first['input']!r}")
    except (OSError, ValueError) as error:  # of the file
        parsing.error(f"--config ({PREFIX}CONFIG): {error}")
    return settings, sources


def unknown_variables() -> list[str]:
    """Variables of the environment that look like settings and are none: most likely misspelt."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"KRONSERVE_DATA"}
    mine = {key for key in os.environ if key.upper().startswith(PREFIX)}
    return sorted(key for key in mine if key.upper() not in known and not _LINK.match(key))


def config(argv: Sequence[str]) -> int:
    """Print the settings in force as TOML, each with where it comes from."""
    options = parser("config", "Print the settings in force.", "example: KRONSERVE_PORT=9000 kronserve config")
    settings, sources = read(options, argv)
    for key in unknown_variables():
        sys.stderr.write(f"{key} is not a setting\n")
    for name in Settings.model_fields:
        value = getattr(settings, name)
        unset = value is None and Settings.model_fields[name].default is None
        line = f"# {name} is not set" if unset else f"{name} = {_toml('' if value is None else value)}"
        sys.stdout.write(line + (f"  # {sources[name]}" if name in sources else "") + "\n")
    return 0


def _toml(value: object) -> str:
    # JSON's strings, numbers and booleans are TOML's.
    return orjson.dumps(str(value) if isinstance(value, Path) else value).decode()
