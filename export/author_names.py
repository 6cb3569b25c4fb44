"""The parameter names of the HOT authors' own networks, and what they are called here.

github.com/s-omranpour/HOT names its forecaster's and its volume classifier's tensors as below. The numbers inside are
laid out alike: queries and keys are k slices of width d, one for each mode. Rotary tables are computed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES = (
    (r"^emb\.(?:0|conv|proj)\.", "embed."),
    (r"^emb\.2\.", "embed_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"blocks.\1.attention_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"blocks.\1.mlp_norm."),
    (r"^blocks\.(\d+)\.feedforward\.", r"blocks.\1.mlp."),
    (r"\.attention\.query_proj\.", ".attention.query."),
    (r"\.attention\.key_proj\.", ".attention.key."),
    (r"\.attention\.value_proj\.", ".attention.value."),
    (r"\.attention\.out_proj\.", ".attention.out."),
    (r"\.attention\.q_norm\.", ".attention.query_norm."),
    (r"\.attention\.k_norm\.", ".attention.key_norm."),
    (r"^head\.0\.", "head_norm."),
    (r"^head\.2\.", "head."),
)
"""Patterns of the authors' names and their replacements; several may apply to one name."""

_COMPUTED = re.compile(r"\.rotary_emb\.")


def is_authors(names: Iterable[str]) -> bool:
    """Whether these are the names of the authors' code."""
    return any(".query_proj." in name for name in names)


def renamed(name: str) -> str | None:
    """The name here; None for what is not stored here."""
    if _COMPUTED.search(name):
        return None
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name
