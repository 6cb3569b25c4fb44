"""Bundles whose files are not the ones their maker wrote: refused with the reason, and the others serve."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from app.engine.device import Device
from app.engine.repository import Repository
from app.errors import Unavailable
from app.integrity import SUM, BrokenBundle, read_manifest, trusted_keys
from app.main import create_app
from app.settings import Settings
from export.checkpoint import ExportError
from export.sign import sign
from tests.engine.fakes import Line
from tests.manifests import rewrite_manifest

CPU = Device("cpu", "test", 1, (("CPUExecutionProvider", {}),))
FILES = ("manifest.json", "manifest.json.sha256", "model.onnx", "weights.safetensors")

Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@pytest.fixture
def bundle(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository / "hot-etth1" / "1", tmp_path / "models" / "hot-etth1" / "1"))


@pytest.fixture(scope="module")
def shipped(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that the next test may change if it puts everything back."""
    return Path(
        shutil.copytree(repository / "hot-adrenal" / "1", tmp_path_factory.mktemp("copy") / "hot-adrenal" / "1")
    )


def write_private(path: Path, key: Key) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def write_public(path: Path, *keys: Key) -> Path:
    path.write_bytes(
        b"".join(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys)
    )
    return path


@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_one_byte_changed_anywhere_is_found(shipped: Path, name: str, place: float, bits: int) -> None:
    file = shipped / name
    content = file.read_bytes()
    changed = bytearray(content)
    changed[int(place * len(content))] ^= bits
    try:
        file.write_bytes(changed)
        with pytest.raises(BrokenBundle, match="SHA-256"):
            read_manifest(shipped)
    finally:
        file.write_bytes(content)
    assert read_manifest(shipped) is not None


def test_every_byte_of_a_manifest_counts(shipped: Path) -> None:
    """Also those that leave the JSON's meaning as it was."""
    content = (shipped / "manifest.json").read_bytes()
    try:
        (shipped / "manifest.json").write_bytes(content.rstrip() + b" ")
        with pytest.raises(BrokenBundle, match=r"manifest\.json does not have the SHA-256 in manifest\.json\.sha256"):
            read_manifest(shipped)
    finally:
        (shipped / "manifest.json").write_bytes(content)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_the_sum(shipped: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", SUM], cwd=shipped, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "manifest.json: OK\n")


def test_a_manifest_written_by_hand_needs_no_sum(bundle: Path) -> None:
    (bundle / SUM).unlink()
    assert read_manifest(bundle) is not None


def test_only_signed_bundles_are_served_when_keys_are_given(bundle: Path, tmp_path: Path) -> None:
    own, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    both = write_public(tmp_path / "both.pem", other, own)
    with pytest.raises(BrokenBundle, match=r"manifest\.json\.sig is missing"):
        read_manifest(bundle, both)
    sign(bundle, write_private(tmp_path / "own.key", own))
    assert read_manifest(bundle, both) == read_manifest(bundle)
    with pytest.raises(BrokenBundle, match="not by a trusted key"):
        read_manifest(bundle, write_public(tmp_path / "other.pem", other))
    # Somebody who can write the folder can make the sums agree, but not the signature.
    rewrite_manifest(bundle, description="better than it is")
    assert read_manifest(bundle) is not None
    with pytest.raises(BrokenBundle, match="not by a trusted key"):
        read_manifest(bundle, both)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_signs_a_bundle_that_is_finished(bundle: Path, tmp_path: Path) -> None:
    """docs/export.md gives this command for what was calibrated after its export."""
    key, trusted = tmp_path / "maker.pem", tmp_path / "trusted.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", trusted], check=True, capture_output=True)
    manifest = bundle / "manifest.json"
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", manifest, "-out", f"{manifest}.sig"]
    subprocess.run(command, check=True, capture_output=True)
    assert read_manifest(bundle, trusted) == read_manifest(bundle)


def test_an_unsigned_bundle_is_left_out_and_the_signed_one_serves(bundle: Path, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    unsigned = Path(shutil.copytree(bundle, bundle.parents[1] / "unsigned" / "1"))
    rewrite_manifest(unsigned, name="unsigned")
    bare = bundle.parents[1] / "bare" / "1"
    bare.mkdir(parents=True)
    shutil.copy(bundle / "model.onnx", bare)
    sign(bundle, write_private(tmp_path / "key.pem", key))
    settings = Settings(
        repository=bundle.parents[1],
        cache_dir=tmp_path / "cache",
        plan_seconds=0.01,
        trusted_keys=write_public(tmp_path / "trusted.pem", key),
    )
    models = Repository(settings, CPU, Line())
    models.load_all()
    assert models.get("hot-etth1").version == "1"
    for name in ("unsigned", "bare"):
        with pytest.raises(Unavailable, match="only signed bundles are served"):
            models.get(name)


def test_keys_that_cannot_be_used_stop_the_service_from_starting(tmp_path: Path, repository: Path) -> None:
    curve = write_public(tmp_path / "curve.pem", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "empty.pem").write_text("no key here")
    faults = {
        tmp_path / "nowhere.pem": "No such file",
        curve: "not Ed25519",
        tmp_path / "empty.pem": "no PEM public key",
    }
    for path, message in faults.items():
        with pytest.raises(ValueError, match=message):
            create_app(Settings(repository=repository, trusted_keys=path))
    assert len(trusted_keys(write_public(tmp_path / "one.pem", ed25519.Ed25519PrivateKey.generate()))) == 1


def test_a_private_key_that_cannot_sign_is_named(bundle: Path, tmp_path: Path) -> None:
    curve = write_private(tmp_path / "curve.key", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "text").write_text("no key")
    for path, message in (
        (tmp_path / "gone", "No such file"),
        (curve, "not an Ed25519"),
        (tmp_path / "text", "not a pri"),
    ):
        with pytest.raises(ExportError, match=message):
            sign(bundle, path)
