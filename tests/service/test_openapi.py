"""Whatever the served OpenAPI document allows is answered as it says: schemathesis against a real server.

KRONSERVE_EXAMPLES sets the examples of all operations together; `make openapi` asks for 10,000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app.api import deadline
from app.main import create_app
from app.settings import Settings
from tests.service.conftest import write_add_model
from tests.service.process import serving
from tests.tiny_models import write_offset_model


def no_defect(ctx: Any, response: Any, case: Case) -> bool | None:
    """No 5xx, but for the 504 of a caller who allows the queue less time than it takes."""
    if response.status_code == 504 and deadline.HEADER in case.headers:
        return None
    return not_a_server_error(ctx, response, case)


CHECKS = [
    no_defect,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
MODELS = ["hot-etth1", "hot-adrenal", "add", "offset"]
SPARE = "spare"
"""The only one that may be unloaded."""

document = create_app(Settings(repository=Path(__file__).parents[2] / "model_repository", device="cpu")).openapi()
schema = schemathesis.openapi.from_dict(document)
operations = [operation for path in document["paths"].values() for operation in path.values()]
varied = [operation for operation in operations if "parameters" in operation or "requestBody" in operation]
examples = int(os.environ.get("KRONSERVE_EXAMPLES", "600")) // len(varied)


def serialise_opaque(_: Any, value: Any) -> bytes:
    """What was generated for an opaque body, as it is."""
    return value if isinstance(value, bytes) else str(value).encode()


for media_type in ("x-npy", "vnd.apache.parquet", "vnd.apache.arrow.file", "vnd.apache.arrow.stream"):
    schemathesis.serializer(f"application/{media_type}")(serialise_opaque)


@schema.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Half of the paths lead to models that there are."""
    if path_parameters and "model" in path_parameters:
        chosen = sum(map(ord, str(path_parameters)))
        if chosen % 2:
            spare = context.operation.path.endswith("unload")
            path_parameters = dict.fromkeys(path_parameters, "1")
            path_parameters["model"] = SPARE if spare else MODELS[chosen // 2 % len(MODELS)]
    return path_parameters


@pytest.fixture(scope="module")
def url(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("documented")
    for name in ("hot-etth1", "hot-adrenal"):
        (root / name).symlink_to(repository.resolve() / name)
    write_add_model(root / "add" / "1")
    for name in ("offset", SPARE):
        write_offset_model(root / name / "1", 1)
    with serving(root, root.parent / "documented.log") as running:
        yield running.url


def test_document_is_the_one_served(url: str):
    assert httpx.get(f"{url}/openapi.json").json() == document


def test_no_operation_has_a_parameter_twice():
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            named = [(one["name"].lower(), one["in"]) for one in operation.get("parameters", [])]
            assert len(named) == len(set(named)), f"{method} {path}"


def test_what_is_refused_to_web_pages_is_documented(url: str):
    for path, found in document["paths"].items():
        for method, operation in found.items():
            filled = path.format(model="offset", version="1")
            answer = httpx.request(method, url + filled, headers={"Sec-Fetch-Site": "cross-site"})
            refused = method not in ("get", "head")
            assert (answer.status_code == 403) is ("403" in operation["responses"]) is refused, f"{method} {path}"


@pytest.mark.parametrize("path", ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"])
def test_the_example_of_inference_is_true(url: str, path: str):
    operation = document["paths"][path]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["example"]
    answer = httpx.post(url + path.format(model="offset", version="1"), json=asked)
    assert answer.json() == operation["responses"]["200"]["content"]["application/json"]["example"]


@schema.parametrize()
@settings(max_examples=examples, suppress_health_check=list(HealthCheck))
def test_answers_are_as_documented(case: Case, url: str):
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=30)
