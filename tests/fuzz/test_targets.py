"""The fuzzer's targets take their own seeds, and what hypothesis makes of them; `make fuzz` goes on from there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.starts_process])
def test_seeds_and_nonsense_in_a_process_of_their_own(name: str) -> None:
    target = TARGETS[name]
    for sent in (target.seeds[0][:-9], *target.seeds[1:]):
        target.run(sent)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.starts_process])
@settings(max_examples=40)
@given(data=st.data())
def test_seeds_and_what_is_near_them(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    sent = bytearray(data.draw(st.sampled_from(target.seeds)))
    for _ in range(data.draw(st.integers(0, 6))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    target.run(bytes(sent[: data.draw(st.integers(0, len(sent)))]))
    target.run(data.draw(st.binary(max_size=64)))
