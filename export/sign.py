"""The signature of a bundle's manifest, which lists the SHA-256 of every other file."""

from __future__ import annotations

from pathlib import Path

from app.integrity import MANIFEST, SIGNATURE
from export.checkpoint import ExportError


def sign(folder: Path, key: Path) -> None:
    """Write manifest.json.sig: Ed25519 over manifest.json, by the private key in a PEM file without a passphrase.

    Such a key is made by `openssl genpkey -algorithm ed25519`, its public half by `openssl pkey -pubout`.
    ExportError: the key cannot be used.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as error:
        raise ExportError("--sign needs cryptography; install kronserve[sign]") from error
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ExportError(f"--sign {key}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ExportError(f"--sign {key} is not a private key in PEM without a passphrase: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ExportError(f"--sign {key} is not an Ed25519 key")
    (folder / SIGNATURE).write_bytes(private.sign((folder / MANIFEST).read_bytes()))
