"""Long answers are written in pieces, and read like those that are written at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from app.api.json_text import PIECE, _pieces, dumps

RNG = np.random.default_rng(3)
DOCUMENTS: list[Any] = [
    {},
    [],
    {"a": [], "b": {}, "c": None, 'quote"': "\u00e9", "list": [1, 2.5, "x", [True]], "dicts": [{"a": 1}, {}]},
    {"flat": RNG.standard_normal(3 * PIECE + 5), "empty": np.zeros(0), "exact": np.arange(2 * PIECE)},
    {"rows": RNG.standard_normal((PIECE + 3, 2)).astype(np.float32), "deep": RNG.standard_normal((2, 3, PIECE))},
    [{"series": {"x": RNG.standard_normal(PIECE + 1), "y": np.zeros((1, 2))}}] * 3,
    np.ones((3, PIECE)),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pieces_are_what_orjson_writes_at_once(document: Any) -> None:
    whole = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    assert b"".join(_pieces(document)) == whole
    assert dumps(document, 0) == dumps(document, 1 << 20) == whole


def test_no_piece_is_long() -> None:
    document = {"outputs": [{"data": np.full(10 * PIECE, 0.123456789)}, {"data": np.full((20, PIECE), 1.5)}]}
    assert max(map(len, _pieces(document))) < 16 * PIECE
