"""The paths of a task: /v1/models/{model}/TASK, and the same of one version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Depends
from starlette.responses import Response

from app.api import deadline
from app.engine.runtime import Model
from app.errors import UnusableInput
from app.manifest import Forecasting, VolumeClassification

Task = TypeVar("Task", Forecasting, VolumeClassification)

VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}


def task_router(
    endpoint: Callable[..., Awaitable[Response]],
    task: str,
    summary: str,
    *,
    responses: Mapping[int | str, dict[str, Any]],
    openapi_extra: Mapping[str, Any],
) -> APIRouter:
    """POST routes to `endpoint`, which reads the version from the request's path parameters; None there is any."""
    router = APIRouter(tags=["Tasks"])
    for path, title, parameters in (
        (f"/v1/models/{{model}}/{task}", summary, []),
        (
            f"/v1/models/{{model}}/versions/{{version}}/{task}",
            f"{summary} with one version",
            [VERSION],
        ),
    ):
        router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=title,
            responses=dict(responses),
            response_class=Response,
            dependencies=[Depends(deadline.arm)],
            openapi_extra={**openapi_extra, "parameters": [*parameters, deadline.DOCUMENTED]},
        )
    return router


def require_task(model: Model, kind: type[Task], does_not: str) -> Task:
    """The model's task if it is of this kind. UnusableInput says what the model is for, and what it does not do."""
    task = None if model.manifest is None else model.manifest.task
    if not isinstance(task, kind):
        said = "has no manifest that says what it is for" if task is None else f"is for {task.kind}"
        raise UnusableInput(f"model {model.name!r} {said}; it {does_not}")
    return task
