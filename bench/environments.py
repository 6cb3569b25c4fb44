"""A virtual environment for each peer, made from its pinned requirements when it is missing or they have changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.bundles import WORK

REQUIREMENTS = Path(__file__).with_name("peers")


class NotInstallable(Exception):
    """pip could not make an environment; the message is the end of what it said."""


def python(name: str) -> Path:
    """The interpreter of the peer's environment. Raises NotInstallable."""
    return environment(name, (REQUIREMENTS / f"{name}.txt").read_text())


def environment(name: str, requirements: str) -> Path:
    """The interpreter of an environment with what the text of a requirements file asks for. Raises NotInstallable."""
    folder = WORK / "venvs" / name
    interpreter, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if stamp.is_file() and stamp.read_text() == requirements:
        return interpreter
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    wanted = folder / "wanted.txt"
    wanted.write_text(requirements)
    _run([str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)])
    wanted.rename(stamp)
    return interpreter


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotInstallable((done.stderr or done.stdout).strip()[-600:])
