"""A CPU session's work done once: the optimised graph and its prepacked weights, kept as files.

ONNX Runtime copies and repacks every weight for each session. Saved with prepacked initializers, the weights are mapped
from one file instead, so any number of sessions of any number of processes share one copy in memory, and a start skips
the optimiser. The files hold for one model, one ONNX Runtime and one processor, all of which are in their key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import onnxruntime as ort

logger = logging.getLogger(__name__)

CACHE_LINE = 64
GRAPH, WEIGHTS, SUMS = "model.onnx", "weights.bin", "sha256.json"

SPIN_MICROSECONDS = 300
"""How long a session's further threads wait for work before they sleep.

A lone client's next request comes about as soon as it has its answer; threads that sleep by then, and processors that
idle, take longer to wake. Past that they would take a processor from others.
"""


def key(files: Iterable[Path], unit: str | None = None) -> str:
    """Names a model's compiled form: its files' content, ONNX Runtime's version, the processor or another unit."""
    digest = hashlib.sha256(f"{ort.__version__} {platform.machine()} {unit or _processor()}".encode())
    for file in sorted(files):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def find(folder: Path) -> Path | None:
    """The compiled graph in `folder`, if it is whole."""
    try:
        sums = json.loads((folder / SUMS).read_text())
        for name, expected in sums.items():
            with (folder / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                    raise ValueError(f"{name} has changed")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the compiled form in the cache is not whole, it is made again: %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder / GRAPH


def build(graph: Path, folder: Path, prepare: Callable[[ort.SessionOptions], None] = lambda _: None) -> Path:
    """Compile `graph` into `folder`, which appears whole or not at all. Raises what ONNX Runtime or the disk raises.

    prepare: completes the session's options, as with a library of kernels.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        _write(graph, partial, prepare, prepacked=True)
        if _misaligned(partial / GRAPH):
            for file in partial.iterdir():
                file.unlink()
            _write(graph, partial, prepare, prepacked=False)
        sums = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in partial.iterdir() if file.is_file()
        }
        (partial / SUMS).write_text(json.dumps(sums))
        try:
            os.rename(partial, folder)
        except OSError:
            if find(folder) is None:  # not another process that was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / GRAPH


def _write(graph: Path, folder: Path, prepare: Callable[[ort.SessionOptions], None], *, prepacked: bool) -> None:
    options = session_options(1)
    prepare(options)
    options.optimized_model_filepath = str(folder / GRAPH)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", WEIGHTS),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", str(int(prepacked))),
    ):
        options.add_session_config_entry(name, value)
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _misaligned(graph: Path) -> bool:
    """Whether a prepacked weight lies in the file where wide loads cannot read it.

    ONNX Runtime writes one after the other without padding and maps them as they lie; its kernels expect prepacked
    weights on a cache line, and the process dies at the first run (seen with 1.31, a weight of 7,776 bytes before
    them). The graph's text names each as KERNEL+HASH|OFFSET;LENGTH;FLAG. Each session then packs its own copies.
    """
    offsets = re.findall(rb"\+\d+\|(\d+);\d+;\d", graph.read_bytes())
    return any(int(offset) % CACHE_LINE for offset in offsets)


def session_options(threads: int) -> ort.SessionOptions:
    """Options of every CPU session; `threads` is the number of cores that one run uses, the caller's included.

    Several threads spin while a run lasts, since waking them would cost what they win, and `SPIN_MICROSECONDS` longer.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and told to whom it concerns
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    return options


def _processor() -> str:
    """The processor's model and features: prepacked layouts depend on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
