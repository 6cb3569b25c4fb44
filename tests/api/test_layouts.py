"""The JSON before binary tensors is understood once: the same text again is read as it was the first time."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from app.api import oip_codec
from app.api.oip_codec import MOST_LAYOUTS, SMALL_DOCUMENT, InferRequest, decode_request
from app.engine import device
from app.engine.runtime import Model
from app.errors import InvalidRequest, KronserveError
from app.settings import Settings
from tests.tiny_models import write_identity_model


def identity(folder: Path, cache: Path, datatype: str = "FP32") -> Model:
    write_identity_model(folder / "m" / "1", datatype, "width")
    settings = Settings(repository=folder, cache_dir=cache, device="cpu", max_batch=1)
    return Model(folder / "m" / "1", device.choose(settings), settings)


def text(tensor: np.ndarray, datatype: str = "FP32", **members: Any) -> bytes:
    parameters = {"binary_data_size": tensor.nbytes}
    item = {"name": "x", "shape": tensor.shape, "datatype": datatype, "parameters": parameters}
    return orjson.dumps({"inputs": [item], **members})


def decode(model: Model, header: bytes, raw: bytes) -> InferRequest:
    return decode_request(header + raw, b"%d" % len(header), model)


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts that were not known."""
    texts: list[bytes] = []
    decode_document = oip_codec._decode_document

    def watched(text: bytes, *arguments: Any) -> InferRequest:
        texts.append(text)
        return decode_document(text, *arguments)

    monkeypatch.setattr(oip_codec, "_decode_document", watched)
    return texts


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"parameters": {"binary_data_output": True, "priority": 3, "timeout": 2_000_000}},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": 2}}]},
    ],
)
def test_a_known_text_is_read_as_an_unknown_one(
    tmp_path: Path, cache: Path, understood: list[bytes], members: dict[str, Any]
) -> None:
    model = identity(tmp_path, cache)
    first, second = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    header = text(first, **members)
    np.testing.assert_array_equal(decode(model, header, first.tobytes()).tensors["x"], first)
    again, afresh = decode(model, header, second.tobytes()), decode(model, b" " + header, second.tobytes())
    assert understood == [header, b" " + header]
    for request in (again, afresh):
        np.testing.assert_array_equal(request.tensors["x"], second)
        request.tensors.clear()
    assert again == afresh


@pytest.mark.parametrize(("missing", "times_understood"), [(-4, 1), (4, 2)])
def test_tensors_of_another_size_are_refused_with_a_known_text(
    tmp_path: Path, cache: Path, understood: list[bytes], missing: int, times_understood: int
) -> None:
    model, tensor = identity(tmp_path, cache), np.ones((2, 3), np.float32)
    header, raw = text(tensor), tensor.tobytes()
    said = []
    for known in (False, True):
        with pytest.raises(InvalidRequest) as refused:
            decode(model, header, (raw + raw)[: len(raw) - missing])
        said.append(str(refused.value))
        if not known:
            decode(model, header, raw)
    assert said[0] == said[1]
    assert understood == [header] * times_understood, "a text whose tensors are not all there says nothing yet"


def test_byte_strings_are_read_anew(tmp_path: Path, cache: Path, understood: list[bytes]) -> None:
    model = identity(tmp_path, cache, "BYTES")
    item = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": 12}}
    header = orjson.dumps({"inputs": [item]})
    for first, second in ((b"a", b"bcd"), (b"efg", b"h"), (b"", b"ijkl")):
        raw = b"".join(len(value).to_bytes(4, "little") + value for value in (first, second))
        assert decode(model, header, raw).tensors["x"].tolist() == [[first, second]]
    assert understood == [header]


def test_what_will_not_come_again_is_not_kept(tmp_path: Path, cache: Path, understood: list[bytes]) -> None:
    model, tensor = identity(tmp_path, cache), np.ones((2, 3), np.float32)
    large = text(tensor, parameters={"note": "x" * SMALL_DOCUMENT})
    for header in (text(tensor, id="7"), large):
        for _ in range(2):
            decode(model, header, tensor.tobytes())
    in_json = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
    for _ in range(2):
        decode(model, in_json, b"")
    with pytest.raises(KronserveError):
        decode(model, text(tensor, "FP64"), tensor.tobytes())
    assert len(understood) == 7
    assert not oip_codec._layouts(model)


def test_few_are_kept_and_none_longer_than_their_model(tmp_path: Path, cache: Path) -> None:
    model, other = identity(tmp_path / "a", cache), identity(tmp_path / "b", cache, "FP64")
    tensor = np.ones((2, 3), np.float32)
    for spaces in range(3 * MOST_LAYOUTS):
        decode(model, b" " * spaces + text(tensor), tensor.tobytes())
    assert 0 < len(oip_codec._layouts(model)) <= MOST_LAYOUTS
    decode(model, text(tensor), tensor.tobytes())
    wide = tensor.astype(np.float64)
    np.testing.assert_array_equal(
        decode(other, text(wide, "FP64"), wide.tobytes()).tensors["x"],
        wide,
        "what one model takes says nothing of another",
    )
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None
    assert other in oip_codec._LAYOUTS
