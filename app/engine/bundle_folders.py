"""What lies in the repository's folder: the versions of each model, and when one has changed.

A bundle becomes visible by one rename: write it beside its place under a name that is not a number, or in a folder that
begins with a dot, and rename it to NAME/VERSION when it is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change and inode of every file of a bundle."""


class Found(NamedTuple):
    """What a repository holds: of each model its versions' folders. unreadable: models that cannot be looked at."""

    versions: dict[str, dict[str, Path]]
    unreadable: frozenset[str]


def scan(root: Path) -> Found:
    """The folder of every version, by model and version. OSError: `root` cannot be read, or is not a folder.

    A version is a folder with a number for its name; what begins with a dot is never looked at.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the model repository {root} is not a folder")
    found: dict[str, dict[str, Path]] = {}
    unreadable = set()
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            continue
        try:
            versions = {version.name: version for version in folder.iterdir() if _is_version(version)}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            unreadable.add(folder.name)
        else:
            found |= {folder.name: versions} if versions else {}
    return Found(found, frozenset(unreadable))


def _is_version(folder: Path) -> bool:
    return folder.name.isascii() and folder.name.isdigit() and folder.is_dir()


def fingerprint(folder: Path) -> Fingerprint:
    """Equal as long as no file of the bundle was written, replaced, added or removed; () when the folder is gone."""
    try:
        stats = [(str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*"))]
    except OSError:  # a file may vanish between the listing and the look
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)
