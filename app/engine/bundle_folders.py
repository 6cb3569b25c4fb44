"""What lies in the repository's folder: the versions of each model, and when one has changed.

A bundle becomes visible by one rename: write it beside its place under a name that is not a number, or in a folder that
begins with a dot, and rename it to NAME/VERSION when it is whole.
"""

from __future__ import annotations

from pathlib import Path

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change and inode of every file of a bundle."""


def scan(root: Path) -> dict[str, dict[str, Path]]:
    """The folder of every version, by model and version; FileNotFoundError if `root` is not a folder.

    A version is a folder with a number for its name; what begins with a dot is never looked at.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the model repository {root} is not a folder")
    found: dict[str, dict[str, Path]] = {}
    for folder in root.glob("*/*"):
        name, version = folder.parent.name, folder.name
        if version.isascii() and version.isdigit() and not name.startswith(".") and folder.is_dir():
            found.setdefault(name, {})[version] = folder
    return dict(sorted(found.items()))


def fingerprint(folder: Path) -> Fingerprint:
    """Equal as long as no file of the bundle was written, replaced, added or removed; () when the folder is gone."""
    try:
        stats = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    except OSError:  # a file may vanish between the listing and the look
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)
