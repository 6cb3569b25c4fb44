"""Manifests changed by a test, with the sum beside them that says nothing else has changed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.integrity import MANIFEST, SUM, sum_line


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Replace top-level values of the bundle's manifest."""
    content = json.dumps(json.loads((folder / MANIFEST).read_text()) | changes).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SUM).write_text(sum_line(content))
