"""Each peer's own virtual environment, made from its pinned requirements when it is missing or they have changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.bundles import WORK

REQUIREMENTS = Path(__file__).with_name("peers")


class NotInstallable(Exception):
    """pip could not make a peer's environment; the message is the end of what it said."""


def python(name: str) -> Path:
    """The interpreter of the peer's environment. Raises NotInstallable."""
    folder, requirements = WORK / "venvs" / name, REQUIREMENTS / f"{name}.txt"
    interpreter, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if stamp.is_file() and stamp.read_text() == requirements.read_text():
        return interpreter
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run([str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
    stamp.write_text(requirements.read_text())
    return interpreter


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotInstallable((done.stderr or done.stdout).strip()[-600:])
