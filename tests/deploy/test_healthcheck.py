"""The image's health check against a real server: where it is, both are told by variables and by a TOML file."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from app.settings import Settings
from deploy import healthcheck
from tests.service.conftest import write_add_model
from tests.service.process import Server, serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file of a certificate for another address, and its key; no client of this machine trusts it."""
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    trustme.CA().issue_cert("kronserve.example").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def secure(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import ssl

    folder = tmp_path_factory.mktemp("health")
    write_add_model(folder / "repository" / "add" / "1")
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    options = ["--tls-certificate", str(certificate), "--tls-key", str(certificate)]
    with serving(folder / "repository", folder / "log", *options, trust=anyone) as server:
        yield server


def checked(**variables: object) -> subprocess.CompletedProcess[str]:
    """The health check as the image runs it, with these and no other variables of the service."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KRONSERVE_")}
    given = {f"KRONSERVE_{name}": str(value) for name, value in variables.items()}
    command = [sys.executable, "-I", healthcheck.__file__]
    return subprocess.run(command, env=inherited | given, capture_output=True, text=True, timeout=30)


def test_port_and_tls_come_from_variables_or_the_file(secure: Server, certificate: Path, tmp_path: Path):
    told = checked(HOST="0.0.0.0", PORT=secure.port, TLS_CERTIFICATE=certificate)
    assert (told.returncode, told.stdout) == (0, "200\n")
    file = tmp_path / "settings.toml"
    file.write_text(f'port = {secure.port}\ntls_certificate = "{certificate}"\ntls_key = "{certificate}"\n')
    assert checked(CONFIG=file).returncode == 0
    file.write_text(f'port = 1\ntls_certificate = "{certificate}"\n')
    assert checked(CONFIG=file, PORT=secure.port).returncode == 0, "a variable beats a line of the file"


def test_it_fails_and_says_why(secure: Server, tmp_path: Path):
    plain = checked(PORT=secure.port)
    assert plain.returncode == 1, "plain HTTP to a port that speaks TLS"
    nobody = checked(PORT=1)
    assert (nobody.returncode, "refused" in nobody.stdout) == (1, True)
    missing = checked(CONFIG=tmp_path / "nowhere.toml")
    assert (missing.returncode, "nowhere.toml" in missing.stdout) == (1, True)


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({}, ""),
        ({"KRONSERVE_PORT": "9000", "KRONSERVE_HOST": "::1"}, "port = 9001"),
        ({"kronserve_port": "9000"}, 'host = "127.0.0.2"'),
        ({"KRONSERVE_TLS_CERTIFICATE": "c.pem", "KRONSERVE_TLS_KEY": "k.pem"}, ""),
        (
            {"KRONSERVE_TLS_CERTIFICATE": "", "KRONSERVE_TLS_KEY": "none"},
            'tls_certificate = "c.pem"\ntls_key = "k.pem"',
        ),
        ({}, 'host = "::1"\nport = 9001\ntls_certificate = "c.pem"\ntls_key = "k.pem"'),
    ],
)
def test_it_reads_what_the_service_reads(
    variables: dict[str, str], lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in os.environ if name.upper().startswith("KRONSERVE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "settings.toml").write_text(lines)
    for name, value in {**variables, "KRONSERVE_CONFIG": str(tmp_path / "settings.toml")}.items():
        monkeypatch.setenv(name, value)
    settings, made = Settings(), healthcheck.connection()
    secure = settings.tls_certificate is not None
    assert (made.host, made.port) == (settings.host, settings.port)
    assert isinstance(made, http.client.HTTPSConnection) == secure


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_a_service_on_every_address_is_asked_on_loopback(host: str, asked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KRONSERVE_HOST", host)
    assert healthcheck.connection().host == asked
