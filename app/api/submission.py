"""One HTTP request's work in the queue, when it is several requests there: all are answered, or none is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from starlette.requests import Request

from app.api import dataplane, deadline
from app.api.waiting import answer_or_disconnect
from app.engine.runtime import Model
from app.service import Service
from app.timeline import timeline_of


async def run_all(
    service: Service,
    request: Request,
    model: Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    outputs: Sequence[str],
) -> list[dict[str, np.ndarray]]:
    """The named outputs of each of the batches, which the scheduler may run together or apart.

    They are admitted together, as one large batch would be. The route has `deadline.arm` among its dependencies. When
    one batch is refused or fails, or the client leaves, the others are withdrawn. Raises what `dataplane.submit` and
    its futures do, and ClientDisconnect.
    """
    timeout, timeline = deadline.remaining(request), timeline_of(request.scope)
    futures: list[asyncio.Future[dict[str, np.ndarray]]] = []
    try:
        for inputs in batches:
            follows = bool(futures)
            futures.append(
                dataplane.submit(service, model, inputs, outputs, timeout=timeout, timeline=timeline, follows=follows)
            )
        answers = await answer_or_disconnect(asyncio.gather(*futures), request.receive)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    if timeline is not None:
        timeline.encode()
    return answers
