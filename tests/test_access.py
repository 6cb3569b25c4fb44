"""Keys: what the file may say, what each scope reaches, and limits by a clock of the test's own."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import pytest

from app.access import Keys, bearer, load_keys, new_key
from app.api.gate import scope_of
from app.errors import Forbidden, Overloaded, Unauthorized
from app.keys_cli import key as key_command


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keys(tmp_path: Path, clock: Clock, text: str) -> Keys:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    return load_keys(file, clock)


def entry(name: str, scopes: str = '["inference"]', more: str = "") -> str:
    return f'[keys.{name}]\nsha256 = "{sha256(name)}"\nscopes = {scopes}\n{more}\n'


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v2/health/live", None),
        ("GET", "/v2/health/ready/", None),
        ("POST", "/v2/health/live", "admin"),
        ("GET", "/v2/models/m", "read"),
        ("GET", "/metrics", "read"),
        ("HEAD", "/v1/models", "read"),
        ("POST", "/v2/repository/index", "read"),
        ("POST", "/v2/models/m/infer", "inference"),
        ("POST", "/v2/models/m/versions/3/infer/", "inference"),
        ("POST", "/v1/models/m/forecast", "inference"),
        ("POST", "/v2/repository/models/m/load", "admin"),
        ("POST", "/v2/repository/models/infer", "admin"),
        ("DELETE", "/v1/models/m", "admin"),
        ("PUT", "/anything", "admin"),
    ],
)
def test_scopes(method: str, path: str, scope: str | None):
    assert scope_of(method, path) == scope


def test_a_key_reaches_its_scopes_alone(tmp_path: Path, clock: Clock):
    known = keys(tmp_path, clock, entry("a") + entry("b", '["read", "admin"]'))
    assert known.admit("a", "inference").name == "a"
    assert known.admit("b", "admin").name == "b"
    for presented, scope in (("a", "read"), ("a", "admin"), ("b", "inference")):
        with pytest.raises(Forbidden):
            known.admit(presented, scope)
    for presented in (None, "", "c", "a ", "A", sha256("a"), "a" * 10_000, "\udcff"):
        with pytest.raises(Unauthorized):
            known.admit(presented, "inference")


def test_rate_and_burst(tmp_path: Path, clock: Clock):
    known = keys(tmp_path, clock, entry("a", more="requests_per_second = 2"))

    for quiet, allowed in ((0, 2), (0.5, 1), (1000, 2)):  # a long quiet time gives no more than a second's worth
        clock.now += quiet
        for _ in range(allowed):
            known.admit("a", "inference")
        with pytest.raises(Overloaded) as refused:
            known.admit("a", "inference")
        assert 0 < refused.value.retry_after <= 0.5


def test_concurrency_and_refusals_cost_nothing(tmp_path: Path, clock: Clock):
    known = keys(tmp_path, clock, entry("a", more="concurrent = 2\nrequests_per_second = 3"))
    first, _ = known.admit("a", "inference"), known.admit("a", "inference")
    for _ in range(5):
        with pytest.raises(Overloaded, match="under way"):
            known.admit("a", "inference")
    first.leave()
    known.admit("a", "inference")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "keys"),
        ("keys = 3", "keys"),
        ("[keys.a]\nscopes = ['read']", "keys.a.sha256"),
        (entry("a").replace(sha256("a"), "a"), "keys.a.sha256"),
        (entry("a", "[]"), "keys.a.scopes"),
        (entry("a", "['root']"), "keys.a.scopes"),
        (entry("a", more="rate = 3"), "keys.a.rate"),
        (entry("a", more="concurrent = 0"), "keys.a.concurrent"),
        (entry("a") + entry("b").replace(sha256("b"), sha256("a")), "same key"),
        ("[keys", "not TOML"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path: Path, clock: Clock, text: str, fault: str):
    with pytest.raises(ValueError, match=fault):
        keys(tmp_path, clock, text)


def test_made_keys_are_long_and_what_the_command_prints_admits_them(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
):
    assert len({new_key()[0] for _ in range(100)}) == 100
    assert key_command(["billing", "--scope", "read", "--scope", "inference", "--concurrent", "4"]) == 0
    shown = capsys.readouterr()
    secret = shown.err.split()[-1]
    assert secret not in shown.out
    assert tomllib.loads(shown.out)["keys"]["billing"]["concurrent"] == 4
    assert keys(tmp_path, clock, shown.out).admit(secret, "read").name == "billing"


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer x", "x"), ("bearer  x ", "x"), ("Basic x", None), ("Bearer", None), ("Bearer ", None), (None, None)],
)
def test_bearer(header: str | None, token: str | None):
    assert bearer(header) == token
