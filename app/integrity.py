"""Whether a bundle's files are the ones its maker wrote.

manifest.json lists the SHA-256 of every other file, and manifest.json.sha256 (as `sha256sum` writes it) holds its own,
so that a byte changed anywhere is found; a graph may read from no other file. Against somebody who changes both there
is manifest.json.sig, an Ed25519 signature (RFC 8032) of manifest.json, demanded when the service is given the keys it
trusts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from app.errors import KronserveError
from app.manifest import Manifest, fault

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST, GRAPH = "manifest.json", "model.onnx"
SUM, SIGNATURE = f"{MANIFEST}.sha256", f"{MANIFEST}.sig"


class BrokenBundle(KronserveError):
    """A version that cannot be loaded; the message says why."""


def read_manifest(folder: Path, trusted: Path | None = None) -> Manifest | None:
    """The manifest in `folder` (NAME/VERSION), with every file of the bundle checked; None for a bare model.onnx.

    trusted: file of PEM public keys, one of which must have signed the manifest; a bare graph is refused then.
    Raises BrokenBundle.
    """
    path = folder / MANIFEST
    if not (folder / GRAPH).is_file():
        raise BrokenBundle(f"{GRAPH} is missing")
    content = path.read_bytes() if path.is_file() else None
    if trusted is not None:
        _check_signature(content, folder / SIGNATURE, trusted)
    if content is None:
        return None
    _check_sum(content, folder / SUM)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BrokenBundle(f"{MANIFEST} is not valid: {fault(error)}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise BrokenBundle(
            f"{MANIFEST} says {manifest.name}/{manifest.version}, the folder is {folder.parent.name}/{folder.name}"
        )
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise BrokenBundle(f"{name} is missing")
        if file.stat().st_size != expected.size:
            raise BrokenBundle(f"{name} has {file.stat().st_size} bytes instead of {expected.size}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected.sha256:
                raise BrokenBundle(f"{name} does not have the SHA-256 that {MANIFEST} lists")
    _check_others(folder, manifest)
    return manifest


def _check_others(folder: Path, manifest: Manifest) -> None:
    """Refuse a file that no sum covers and that a graph may read weights from: a graph has such names in clear."""
    known = {MANIFEST, SUM, SIGNATURE, GRAPH, *manifest.files}
    files = (file for file in folder.rglob("*") if file.is_file())
    others = [file.name for file in files if file.relative_to(folder).as_posix() not in known]
    if not others:
        return
    for name in {GRAPH, *(name for name in manifest.files if name.endswith(".onnx"))}:
        graph = (folder / name).read_bytes()
        for other in others:
            if other.encode() in graph:
                raise BrokenBundle(f"{name} names the file {other}, which {MANIFEST} does not list")


def sum_line(content: bytes) -> str:
    """What manifest.json.sha256 holds for this manifest; `sha256sum -c` reads it."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n"


def _check_sum(content: bytes, path: Path) -> None:
    """A bundle written by hand may do without the file."""
    if path.is_file() and path.read_bytes() != sum_line(content).encode():
        raise BrokenBundle(f"{MANIFEST} does not have the SHA-256 in {SUM}")


def _check_signature(content: bytes | None, path: Path, trusted: Path) -> None:
    from cryptography.exceptions import InvalidSignature

    if content is None:
        raise BrokenBundle(f"it has no {MANIFEST}, and only signed bundles are served")
    if not path.is_file():
        raise BrokenBundle(f"{SIGNATURE} is missing, and only signed bundles are served")
    signature = path.read_bytes()
    for key in trusted_keys(trusted):
        try:
            key.verify(signature, content)
        except InvalidSignature:
            continue
        return
    raise BrokenBundle(f"{SIGNATURE} is not by a trusted key over this {MANIFEST}")


def trusted_keys(path: Path) -> list[Ed25519PublicKey]:
    """The Ed25519 public keys in a PEM file.

    ValueError: it holds none, or others; ModuleNotFoundError: the extra `sign` is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    mark = "-----END PUBLIC KEY-----"
    keys = []
    for part in path.read_text(encoding="ascii", errors="replace").split(mark)[:-1]:
        try:
            key = load_pem_public_key((part + mark).strip().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{path} holds a key that is not Ed25519")
        keys.append(key)
    if not keys:
        raise ValueError(f"{path} holds no PEM public key")
    return keys
