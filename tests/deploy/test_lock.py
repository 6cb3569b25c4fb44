"""The image's locks give what pyproject.toml asks for, by hash, and the image is installed from nothing else."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
BASE = PROJECT["project"]["dependencies"]

LOCKS = {
    "serve.txt": [*BASE, *EXTRAS["grpc"], *EXTRAS["otel"], *EXTRAS["sign"]],
    "cuda.txt": [*BASE, *EXTRAS["grpc"], *EXTRAS["otel"], *EXTRAS["sign"], *EXTRAS["cuda"]],
    "build.txt": PROJECT["build-system"]["requires"],
}

PLATFORMS = [
    {"python_version": version, "python_full_version": f"{version}.0", "platform_machine": machine}
    | {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    | {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    for version in ("3.11", "3.12", "3.13")
    for machine in ("x86_64", "aarch64")
]


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Each pin of a lock, with its hashes."""
    text = re.sub(r"#.*", "", (ROOT / "requirements" / name).read_text()).replace("\\\n", " ")
    lines = [line.split("--hash=") for line in text.splitlines() if line.strip()]
    return [(Requirement(pin), [value.strip() for value in hashes]) for pin, *hashes in lines]


def pins(name: str, platform: dict[str, str]) -> dict[str, str]:
    """What a lock installs there: package -> version."""
    found: dict[str, str] = {}
    for pin, _ in locked(name):
        if pin.marker is None or pin.marker.evaluate(platform):
            assert pin.name not in found, f"{pin.name} is locked twice"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[canonicalize_name(pin.name)] = specifier.version
    return found


def unmet(wanted: Requirement, found: dict[str, str], platform: dict[str, str]) -> bool:
    if wanted.marker is not None and not wanted.marker.evaluate({**platform, "extra": ""}):
        return False
    version = found.get(canonicalize_name(wanted.name))
    return version is None or version not in wanted.specifier


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda of: f"{of['python_version']}-{of['platform_machine']}")
def test_the_locks_give_what_the_project_asks_for(platform: dict[str, str]):
    for name, asked in LOCKS.items():
        if name == "cuda.txt" and platform["platform_machine"] != "x86_64":
            continue  # there are no CUDA images for others
        found = pins(name, platform)
        missing = [wanted for wanted in asked if unmet(Requirement(wanted), found, platform)]
        assert missing == [], "run `make lock`"
        assert "torch" not in found


@pytest.mark.parametrize("name", ["serve.txt", "build.txt"])
def test_the_lock_gives_what_its_own_packages_ask_for(name: str):
    """As far as those are installed here in the locked version; pip itself proves the rest when it builds the image."""
    platform = PLATFORMS[0]
    found = pins(name, platform)
    compared, missing = 0, []
    for package, version in found.items():
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue
        if installed.version == version:
            compared += 1
            asked = [Requirement(line) for line in installed.requires or ()]
            missing += [f"{package}: {wanted}" for wanted in asked if unmet(wanted, found, platform)]
    assert missing == []
    assert compared or name == "build.txt"


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_is_known_by_its_hash_and_none_by_its_place(name: str):
    for pin, hashes in locked(name):
        assert hashes, f"{pin} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes)
        assert pin.url is None
    text = (ROOT / "requirements" / name).read_text()
    place = r"://|file:|--(extra-)?index|--find-links|--trusted-host|^ *-e |/(opt|home|tmp|work)/"
    assert not re.search(place, text, re.MULTILINE)


def test_both_images_have_the_same_packages_beside_cuda():
    serve, cuda = (pins(name, PLATFORMS[0]) for name in ("serve.txt", "cuda.txt"))
    assert {name: version for name, version in cuda.items() if not name.startswith("nvidia-")} == serve


def test_the_image_is_installed_from_the_locks_alone():
    steps = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"\bpip\b[^&\n]* install ([^&\n]*)", steps)
    assert len(installs) == 4
    assert all(
        "--require-hashes -r requirements/" in install or "--no-index --no-deps" in install for install in installs
    )
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "!requirements" in ignored
