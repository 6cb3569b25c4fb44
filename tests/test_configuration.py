"""Where settings come from, and what `kronserve config` says of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from app.configuration import config, parser, read
from app.settings import Settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"KRONSERVE_{name.upper()}", raising=False)
    path = tmp_path / "kronserve.toml"
    path.write_text('port = 9000\nmax_queue = 7\nhost = "::1"\n')
    return path


def settings(*argv: str) -> tuple[Settings, dict[str, str]]:
    return read(parser("serve", "", ""), argv)


def test_command_line_then_variables_then_file_then_defaults(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KRONSERVE_CONFIG", str(file))
    monkeypatch.setenv("KRONSERVE_MAX_QUEUE", "8")
    monkeypatch.setenv("KRONSERVE_PORT", "9001")
    found, sources = settings("--port", "9002")
    assert (found.port, found.max_queue, found.host, found.max_batch) == (9002, 8, "::1", 0)
    assert {name: sources.get(name) for name in ("port", "max_queue", "host", "max_batch")} == {
        "port": "--port",
        "max_queue": "KRONSERVE_MAX_QUEUE",
        "host": "kronserve.toml",
        "max_batch": None,
    }


def test_the_file_s_name_may_come_from_the_command_line(file: Path):
    assert settings("--config", str(file))[0].port == 9000
    assert Settings(config=file).max_queue == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "kronserve.toml: prot: there is no such setting"),
        ("port = 'x'", "kronserve.toml: port: "),
        ("port = [", "--config (KRONSERVE_CONFIG)"),
        (None, "there is no file"),
    ],
)
def test_faults_end_the_program_and_are_named(file: Path, capsys: pytest.CaptureFixture[str], text: str, said: str):
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        settings("--config", str(file))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_printed_is_a_file_of_the_same_settings(file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    odd = tmp_path / 'a "quoted" \\ folder'
    argv = ["--config", str(file), "--open", "true", "--cache-dir", str(odd), "--queue-budget", "0.5"]
    assert config(argv) == 0
    printed = capsys.readouterr().out
    assert "port = 9000  # kronserve.toml" in printed
    assert "# trusted_keys is not set" in printed
    listed = tomllib.loads(printed)
    assert Settings(**listed) == settings(*argv)[0]


def test_every_setting_is_in_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        settings("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"KRONSERVE_{name.upper()}" in shown
        assert field.description


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--shutdown-grace", "inf"], "finite"),
        (["--queue-budget", "nan"], "finite"),
        (["--repository", ""], "empty path"),
        (["--host", "[::1]"], "without brackets"),
        (["--port", "tcp://10.0.0.1:8000"], "enableServiceLinks: false"),
    ],
)
def test_values_that_would_harm_later_are_refused(
    file: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
):
    with pytest.raises(SystemExit):
        settings("--config", str(file), *argv)
    assert said in capsys.readouterr().err


def test_misspelt_variables_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("KRONSERVE_PROT", "8000")
    monkeypatch.setenv("KRONSERVE_CONFIG", "none")
    for link in ("KRONSERVE_SERVICE_HOST", "KRONSERVE_SERVICE_PORT_HTTP", "KRONSERVE_PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(link, "10.0.0.1")
    assert config([]) == 0
    told = capsys.readouterr().err
    assert "KRONSERVE_PROT is not a setting" in told
    assert "10.0.0.1" not in told
    assert "TCP" not in told
    assert "SERVICE" not in told
