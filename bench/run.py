"""`make bench`: Kronserve, its peers and the floors on the same ONNX files, in turns, several rounds.

Every block of a round measures one cell: the compute limit, every server, the compute limit again; a server's share is
its rate over the mean of those two. Servers take turns in another order in each round. While one is measured the
others are at rest: frozen (SIGSTOP) where they survive that, else idle. A server that cannot be installed, started, or
does not give bare ONNX Runtime's numbers is left out, and the report says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench import agreement, bundles, generators, limit, machine, mixed, over_grpc
from bench.bundles import MODELS
from bench.cells import Cell, cells, measure
from bench.environments import NotInstallable
from bench.load import NoLoadGenerator
from bench.process import NotStarted, Running
from bench.report import RESULTS
from bench.servers import FLOORS, SERVERS, Server, forget_plans

IDLE_SECONDS = 2.0

Found = TypeVar("Found")


def main() -> int:
    """Parse the command line, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement; default: %(default)s")
    parser.add_argument(
        "--cells", nargs="+", default=["*"], metavar="PATTERN", help="binary-forecaster-*, json-*-32, .."
    )
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=list(SERVERS), metavar="NAME")
    parser.add_argument("--no-mixed", action="store_true", help="leave out the two models at once")
    parser.add_argument("--no-grpc", action="store_true", help="leave out gRPC against REST")
    parser.add_argument("--no-generators", action="store_true", help="leave out the load generators' own measurement")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for serving.{json,md,png}")
    options = parser.parse_args()
    if not (chosen := cells(options.cells)):
        parser.error(f"no cell fits {' '.join(options.cells)}")
    try:
        about = machine.describe()
        if not options.no_grpc:
            about["h2load"] = over_grpc.require_h2load()
    except NoLoadGenerator as error:
        parser.error(str(error))
    bundles.ensure_bundles()
    results: dict[str, Any] = {"machine": about, "settings": {"rounds": options.rounds, "seconds": options.seconds}}
    running, results["servers"] = _start([SERVERS[name] for name in options.servers])
    speaking = None if options.no_grpc else over_grpc.start()
    try:
        if speaking is not None:
            speaking.running.freeze()
        if "noop" in running and not options.no_generators:
            results["generators"] = _alone(
                "noop", running["noop"], partial(generators.measure, seconds=options.seconds)
            )
        results["blocks"], results["mixed"], results["grpc"] = [], [], []
        for number in range(options.rounds):
            results["blocks"] += _round(number, chosen, running, options.seconds)
            if not options.no_mixed:
                results["mixed"] += _mixed(number, running, options.seconds)
            if speaking is not None:
                results["grpc"] += _over_grpc(number, speaking, options.seconds)
            _write(results, options.out)
    finally:
        for server in running.values():
            server.stop()
        if speaking is not None:
            speaking.running.stop()
    return 0


def _start(servers: list[Server]) -> tuple[dict[str, Running], dict[str, dict[str, Any]]]:
    """Start each server twice (the second start finds its caches), check its answers, freeze it."""
    forget_plans()
    running: dict[str, Running] = {}
    about: dict[str, dict[str, Any]] = {}
    for server in servers:
        _say(f"{server.name}: starting")
        one = None
        try:
            first = server.start()
            first.stop()
            one = server.start()
            time.sleep(IDLE_SECONDS)
            before = one.cpu_seconds()
            time.sleep(IDLE_SECONDS)
            idle = one.memory()
            about[server.name] = {
                "seconds_to_ready_first": first.seconds_to_ready,
                "seconds_to_ready": one.seconds_to_ready,
                "idle_rss": idle.rss,
                "idle_pss": idle.pss,
                "idle_cores": (one.cpu_seconds() - before) / IDLE_SECONDS,
                "processes": idle.processes,
                "difference_from_onnxruntime": agreement.check(server, one),
            }
            if server.name == "kronserve":
                about[server.name]["plans"] = {model: _plan(one, model) for model in MODELS}
            running[server.name] = one
            _rest(server, one)
        except (NotInstallable, NotStarted, agreement.Disagreement, OSError) as error:
            about[server.name] = {"left_out": f"{type(error).__name__}: {error}"}
            _say(f"{server.name}: LEFT OUT, {type(error).__name__}: {error}")
            if one is not None:
                one.stop()
                running.pop(server.name, None)
    return running, about


def _plan(running: Running, model: str) -> dict[str, Any]:
    """The plan that Kronserve measured for a model, from its configuration."""
    configuration = running.get_json(f"/v2/models/{model}/config")
    plan: dict[str, Any] = json.loads(configuration["parameters"]["plan"]["string_value"])
    return plan


def _round(number: int, chosen: list[Cell], running: dict[str, Running], seconds: float) -> list[dict[str, Any]]:
    """One block per cell."""
    blocks = []
    for index, cell in enumerate(chosen):
        able = [(name, SERVERS[name].form(cell.payload, cell.model)) for name in running]
        takers = [(name, form) for name, form in able if form is not None]
        turn = (number + index) % max(1, len(takers))
        model = MODELS[cell.model]
        block: dict[str, Any] = {"round": number, "cell": str(cell), "payload": cell.payload, "model": cell.model}
        block |= {"concurrency": cell.concurrency, "servers": {}, "limits": [limit.apart(model, seconds / 2)]}
        for name, form in takers[turn:] + takers[:turn]:
            target = form.target(running[name].port)
            work = partial(measure, target=target, concurrency=cell.concurrency, seconds=seconds)
            try:
                block["servers"][name] = _alone(name, running[name], work)
            except subprocess.CalledProcessError as error:
                block.setdefault("failures", {})[name] = f"{error}: {error.stderr}"
                _say(f"{name}, {cell}: FAILED, {error.stderr}")
        block["limits"].append(limit.apart(model, seconds / 2))
        block["limit"] = sum(entry["samples_per_second"] for entry in block["limits"]) / 2
        block["lone_seconds"] = min(entry["lone_seconds"] for entry in block["limits"])
        for found in block["servers"].values():
            found["share"] = found["rate"] / block["limit"]
        blocks.append(block)
        shares = ", ".join(f"{name} {found['share']:.2f}" for name, found in sorted(block["servers"].items()))
        _say(f"round {number + 1}, {cell}: limit {block['limit']:.0f}/s; {shares}")
    return blocks


def _mixed(number: int, running: dict[str, Running], seconds: float) -> list[dict[str, Any]]:
    """Both models at once, for every server that is not a floor."""
    found = []
    for name in (name for name in running if name not in FLOORS):
        situations = _alone(name, running[name], partial(mixed.measure, SERVERS[name], seconds=seconds))
        limits = {model.name: limit.apart(model, seconds / 2)["samples_per_second"] for model in MODELS.values()}
        found.append({"round": number, "server": name, "limits": limits, "situations": situations})
        _say(f"round {number + 1}, mixed: {name}")
    return found


def _over_grpc(number: int, speaking: over_grpc.Served, seconds: float) -> list[dict[str, Any]]:
    speaking.running.thaw()
    try:
        found = over_grpc.measure(speaking, seconds)
    finally:
        speaking.running.freeze()
    for entry in found:
        share = entry["grpc"]["rate"] / entry["rest"]["rate"]
        _say(f"round {number + 1}, gRPC over REST: {entry['model']}, {entry['connections']} connections {share:.2f}")
    return [{"round": number} | entry for entry in found]


def _alone(name: str, one: Running, work: Callable[[Running], Found]) -> Found:
    """Let one server work, and none of the others."""
    if SERVERS[name].freezable:
        one.thaw()
    try:
        return work(one)
    finally:
        _rest(SERVERS[name], one)


def _rest(server: Server, one: Running) -> None:
    """Wait until it has done what its last clients left behind, then freeze it if it can be."""
    if not one.settle():
        _say(f"{server.name}: does not come to rest")
    if server.freezable:
        one.freeze()


def _write(results: dict[str, Any], folder: Path) -> None:
    from bench import plot, report

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serving.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "serving.md").write_text(report.render(results))
    plot.draw(results, folder / "serving.png")


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
