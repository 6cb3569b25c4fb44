"""Multiply-adds, peak memory and time of one call, each measured from the running code."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Call = Callable[[Tensor], Tensor]


def _fused(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """torch counts the fused kernels of GPUs and leaves out that of CPUs."""
    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


_COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused}


@torch.no_grad()
def multiply_adds(call: Call, x: Tensor) -> int:
    """Multiplications with an addition in matrix products, as the operators are dispatched; no formula of ours.

    Sums, softmax and normalisation are not products and are not counted, here as in the papers. With `x` on the meta
    device the same code runs without arithmetic.
    """
    with FlopCounterMode(display=False, custom_mapping=_COUNTED) as counter:
        call(x)
    flops: int = counter.get_total_flops()
    return flops // 2


@torch.no_grad()
def peak_bytes(call: Call, x: Tensor) -> int:
    """Most bytes that were allocated at once during the call, its result included and `x` not.

    From the allocator's events in a profile.
    """
    call(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call(x)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(file))
        events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events), default=0)


@torch.no_grad()
def seconds(call: Call, x: Tensor, enough: float = 0.4, least: int = 3) -> float:
    """Median time of a call: at least `least` of them, and until they took `enough` seconds; one before to warm up."""
    call(x)
    times: list[float] = []
    while len(times) < least or sum(times) < enough:
        begun = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - begun)
        if times[-1] > enough * 5:
            break
    return statistics.median(times)
