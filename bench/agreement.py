"""Before anything is timed: does a server answer what bare ONNX Runtime answers to the same tensor?"""

from __future__ import annotations

import urllib.request

import numpy as np

from bench.bundles import MODELS
from bench.payloads import Form, reference
from bench.process import Running
from bench.servers import PAYLOADS, Server

TOLERANCE = 1e-4
"""Largest difference, relative to the output's largest absolute value."""


class Disagreement(Exception):
    """A server whose numbers are not bare ONNX Runtime's; it is not measured."""


def check(server: Server, running: Running) -> float:
    """The largest relative difference over all its forms and models. Raises Disagreement above the tolerance."""
    worst = 0.0
    for payload in PAYLOADS:
        for model in MODELS:
            form = server.form(payload, model)
            if form is None:
                continue
            expected = form.expect(reference(model)[2])
            found = _ask(form, running.port)
            if found.shape != expected.shape:
                raise Disagreement(f"{server.name}, {payload} {model}: {found.size} values instead of {expected.size}")
            distance = float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))
            if not distance <= TOLERANCE:
                raise Disagreement(f"{server.name}, {payload} {model}: off by {distance:.1e} of the output's scale")
            worst = max(worst, distance)
    return worst


def _ask(form: Form, port: int) -> np.ndarray:
    url = f"http://127.0.0.1:{port}{form.path}"
    request = urllib.request.Request(url, form.body, dict(form.headers), method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  (our own http:// URL)
        return form.decode(answer.headers, answer.read())
