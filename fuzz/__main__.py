"""Fuzz one target with atheris, or all of them one after another.

    python -m fuzz csv --seconds 600
    python -m fuzz all --seconds 60 --jobs 2 --seed 1

A seed makes a run repeatable: the same inputs in the same order, and as many on any machine, as long as fuzz/corpus/ is
the same. A finding is written to fuzz/findings/ and ends with status 1. Memory over --memory (MB) is a finding too.
Inputs that reached new code stay in fuzz/corpus/NAME and are where the next run begins.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Coverage-guided fuzzing of the readers.")
    parser.add_argument("target", help="one of the targets' names, or all")
    seconds = "for each target, about that with a seed; default: %(default)s"
    parser.add_argument("--seconds", type=int, default=600, help=seconds)
    parser.add_argument("--memory", type=int, default=768, help="MB of the process; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs' order; default: another one each time")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once, with all; default: %(default)s")
    return parser.parse_args()


def main() -> int:
    """The status to exit with: 0 without a finding."""
    arguments = _parse()
    if arguments.target == "all":
        return _all(arguments)

    import atheris

    with atheris.instrument_imports(include=["app", "pydicom", "nibabel", "nrrd"], enable_loader_override=False):
        from fuzz.targets import TARGETS

    target = TARGETS[arguments.target]
    corpus, findings = HERE / "corpus" / arguments.target, HERE / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-rss_limit_mb={arguments.memory}",
        f"-seed={arguments.seed}",
        f"-timeout={120 if target.starts_process else 10}",
        "-max_len=4096",
        f"-artifact_prefix={findings}/{arguments.target}-",
        "-print_final_stats=1",
    ]
    if arguments.seed:
        # What else would let the clock decide which input comes next, or which is the last.
        options += ["-entropic=0", "-reload=0", f"-runs={arguments.seconds * target.pace}"]
    else:
        options += [f"-max_total_time={arguments.seconds}"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.run)
    atheris.Fuzz()
    return 0


def _all(arguments: argparse.Namespace) -> int:
    from fuzz.targets import TARGETS

    with ThreadPoolExecutor(arguments.jobs) as jobs:
        return max(jobs.map(lambda name: _one(name, arguments), TARGETS))


def _one(name: str, arguments: argparse.Namespace) -> int:
    """Fuzz a target in a process of its own, say how much was tried, and what was found."""
    options = [f"--{option}={getattr(arguments, option)}" for option in ("seconds", "memory", "seed")]
    environment = os.environ | ({"PYTHONHASHSEED": "0"} if arguments.seed else {})
    command = [sys.executable, "-m", "fuzz", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    stats = dict(line[6:].split(":", 1) for line in done.stderr.splitlines() if line.startswith("stat::"))
    runs, peak = (stats.get(key, "?").strip() for key in ("number_of_executed_units", "peak_rss_mb"))
    found = f", FAILED\n{done.stderr[-4000:]}" if done.returncode else ""
    print(f"{name}: {runs} inputs, peak {peak} MB{found}", flush=True)
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
