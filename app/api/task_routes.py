"""The paths of a task: /v1/models/{model}/TASK, and the same of one version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from fastapi import APIRouter, Depends, Request, params
from pydantic import BaseModel
from starlette.responses import Response

from app.api import deadline
from app.engine.runtime import Model
from app.errors import InvalidRequest, UnusableInput
from app.manifest import Forecasting, VolumeClassification

Task = TypeVar("Task", Forecasting, VolumeClassification)

VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}

_SHOWN = 40
"""Characters of an unknown name that its refusal repeats."""

_ALIKE = 0.75
"""How like a declared name an unknown one must be to hint at it: date is like dates, timezone not like time_column."""


def task_router(
    endpoint: Callable[..., Awaitable[Response]],
    task: str,
    summary: str,
    *,
    responses: Mapping[int | str, dict[str, Any]],
    openapi_extra: Mapping[str, Any],
) -> APIRouter:
    """POST routes to `endpoint`, which reads the version from the request's path parameters; None there is any.

    Query parameters that it does not declare are refused, and those of one value that are given more than once.
    """
    router = APIRouter(tags=["Tasks"])
    check_query = _query_check(endpoint)
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
            dependencies=[Depends(deadline.arm), Depends(check_query)],
            openapi_extra={**openapi_extra, "parameters": [*parameters, deadline.DOCUMENTED]},
        )
    return router


def _query_check(endpoint: Callable[..., Any]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses what the framework would pass over: unknown names, and all but the last of a
    parameter's values."""
    declared = _query_parameters(endpoint)

    async def check_query(request: Request) -> None:
        seen: set[str] = set()
        for name, _ in request.query_params.multi_items():
            if name not in declared:
                shown = name[:_SHOWN]
                close = get_close_matches(shown.lower(), declared, n=1, cutoff=_ALIKE)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(declared))}"
                raise InvalidRequest(f"unknown query parameter {shown!r}; {hint}", field=shown)
            if name in seen and not declared[name]:
                raise InvalidRequest(f"query parameter {name!r} is given more than once; it has one value", field=name)
            seen.add(name)

    return check_query


def _query_parameters(endpoint: Callable[..., Any]) -> dict[str, bool]:
    """The query parameters that an endpoint declares, one by one or as a model, and whether each is a list."""
    found: dict[str, bool] = {}
    for name, hint in get_type_hints(endpoint, include_extras=True).items():
        if get_origin(hint) is not Annotated or not any(isinstance(one, params.Query) for one in hint.__metadata__):
            continue
        kind = get_args(hint)[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= {field: _is_list(info.annotation) for field, info in kind.model_fields.items()}
        else:
            found[name] = _is_list(kind)
    return found


def _is_list(kind: Any) -> bool:
    """Whether a type is a list, or a list or None."""
    return any(get_origin(one) is list for one in (kind, *get_args(kind)))


def require_task(model: Model, kind: type[Task], does_not: str) -> Task:
    """The model's task if it is of this kind. UnusableInput says what the model is for, and what it does not do."""
    task = None if model.manifest is None else model.manifest.task
    if not isinstance(task, kind):
        said = "has no manifest that says what it is for" if task is None else f"is for {task.kind}"
        raise UnusableInput(f"model {model.name!r} {said}; it {does_not}")
    return task
