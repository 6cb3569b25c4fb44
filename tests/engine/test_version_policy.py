"""Version policies, read and applied."""

from __future__ import annotations

import pytest

from app.engine.version_policy import VersionPolicy


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", ["1", "2", "10"]),
        ("all", ["1", "2", "10"]),
        ("latest:1", ["10"]),
        ("latest:2", ["2", "10"]),
        ("latest:7", ["1", "2", "10"]),
        ("1,10,99", ["1", "10"]),
        ("99", []),
        ("latest:1;m=1,2", ["1", "2"]),
        ("latest:1; other=1,2", ["10"]),
        ("m=latest:1", ["10"]),
        ("latest:1;m=all", ["1", "2", "10"]),
    ],
)
def test_policy_chooses(policy: str, chosen: list[str]):
    assert VersionPolicy(policy).choose("m", ["10", "1", "2"]) == chosen


@pytest.mark.parametrize("policy", ["latest", "latest:0", "latest:x", "newest", "1;;two", "m=", "1,", "a=b=1"])
def test_unreadable_policy_is_told(policy: str):
    with pytest.raises(ValueError, match="version policy"):
        VersionPolicy(policy)
