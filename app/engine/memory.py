"""What one model adds to the memory of the process, found out while it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATUS, MAPS = Path("/proc/self/status"), Path("/proc/self/smaps")


@dataclass(frozen=True)
class Footprint:
    """Bytes of main memory.

    mapped: resident pages of the files with the model's weights, there once for all its sessions and for every process
    that maps them. anonymous: by how much the process's own memory grew while the model was loaded, planned and warmed
    up. At a start nothing else grows it; beside traffic, that counts too.
    """

    mapped: int
    anonymous: int


def anonymous() -> int:
    """Bytes of anonymous memory that this process has resident; 0 where Linux's /proc is not there.

    proc_pid_status(5), RssAnon.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def mapped(folder: Path) -> int:
    """Bytes of the files in `folder` that this process has mapped and resident; 0 where Linux's /proc is not there.

    proc_pid_smaps(5): a line for each mapping, which ends with its file, and lines about it, of which Rss is one.
    """
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return 0
    pages: dict[str, int] = {}  # by offset and file, which several sessions map
    place = ""
    for line in lines:
        if line.startswith("Rss:"):
            if place:
                pages[place] = max(pages.get(place, 0), int(line.split()[1]) * 1024)
        elif not line.split(maxsplit=1)[0].endswith(":"):
            place = line.split(maxsplit=2)[2] if f" {folder}/" in line else ""
    return sum(pages.values())
