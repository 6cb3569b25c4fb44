"""`kronserve key`: make an API key."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import get_args

from app.access import Scope, new_key


def key(argv: Sequence[str]) -> int:
    """Print a new key on standard error, once, and its entry for the key file on standard output."""
    parser = argparse.ArgumentParser(
        prog="kronserve key",
        description="Make an API key. The key is shown once, on standard error; its entry goes to standard output.",
        epilog="example: kronserve key billing --scope inference >> keys.toml",
    )
    parser.add_argument("name", help="who the key is for: letters, digits, - and _")
    parser.add_argument(
        "--scope", action="append", choices=get_args(Scope), help="may be given more than once; default: inference"
    )
    parser.add_argument("--requests-per-second", type=float, help="most requests per second")
    parser.add_argument("--concurrent", type=int, help="most requests under way at once")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", options.name):
        parser.error(f"name: letters, digits, - and _ only, got {options.name!r}")
    for name in ("requests_per_second", "concurrent"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    secret, digest = new_key()
    scopes = ", ".join(f'"{scope}"' for scope in dict.fromkeys(options.scope or ["inference"]))
    sys.stderr.write(f"key of {options.name}, shown this once: {secret}\n")
    lines = [f"[keys.{options.name}]", f'sha256 = "{digest}"', f"scopes = [{scopes}]"]
    limits = {name: getattr(options, name) for name in ("requests_per_second", "concurrent")}
    lines += [f"{name} = {value}" for name, value in limits.items() if value is not None]
    sys.stdout.write("\n".join(lines) + "\n\n")
    return 0
