"""Manifests against the schemas of Kubernetes, and what they say of the service against the service."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.api.gate import OPEN
from app.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
ROOT = FOLDER.parents[1]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def deployment() -> dict[str, Any]:
    return next(document for document in documents("kronserve.yaml") if document["kind"] == "Deployment")


@pytest.mark.parametrize("name", ["kronserve.yaml", "autoscaler.yaml"])
def test_manifests_follow_the_schemas(name: str):
    for document in documents(name):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_field_would_be_found():
    wrong = deployment()
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_probes_settings_and_mounts_are_the_service_s_own():
    pod = deployment()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")} == OPEN
    values = {item["name"]: item["value"] for item in container["env"]}
    names = {name: f"KRONSERVE_{name.upper()}" for name in Settings.model_fields}
    assert set(values) <= set(names.values())
    settings = Settings(**{name: values[variable] for name, variable in names.items() if variable in values})
    assert settings.shutdown_delay + settings.shutdown_grace < pod["terminationGracePeriodSeconds"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(settings.cache_dir), str(settings.keys.parent) if settings.keys else "", "/models"} <= mounts
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_user_and_ports_are_the_image_s():
    image = (ROOT / "Dockerfile").read_text()
    pod = deployment()["spec"]["template"]["spec"]
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{pod['securityContext']['runAsGroup']}" in image
    ports = {port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert f"EXPOSE {' '.join(map(str, sorted(ports)))}" in image


def test_no_pod_takes_a_service_for_a_setting():
    assert deployment()["spec"]["template"]["spec"]["enableServiceLinks"] is False
    _, service = documents("kserve.yaml")
    assert service["spec"]["predictor"]["enableServiceLinks"] is False


def test_kserve_s_probes_are_the_service_s_own():
    (container,) = documents("kserve.yaml")[0]["spec"]["containers"]
    assert {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("readiness", "liveness")} == OPEN
    assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("readiness", "liveness")} == {8000}


def test_prometheus_finds_the_pods_and_has_a_key_for_them():
    (job,) = documents("prometheus-scrape.yml")[0]["scrape_configs"]
    metadata = deployment()["spec"]["template"]["metadata"]
    assert "annotations" not in metadata, "who scrapes by annotation has no key"
    keep = next(rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    port = deployment()["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]
    assert keep["regex"] == f"{metadata['labels']['app.kubernetes.io/name']};{port}"
    assert job["authorization"]["credentials_file"].endswith("/key")
    assert {rule.get("target_label") for rule in job["relabel_configs"]} >= {"namespace", "pod"}


WALK = """
import json, sys
import kserve

def walk(value, kind):
    known = getattr(kserve, kind, None)
    if isinstance(value, list):
        for item in value:
            walk(item, kind.removeprefix("list[").removesuffix("]"))
    elif isinstance(value, dict) and hasattr(known, "openapi_types"):
        names = {spelled: name for name, spelled in known.attribute_map.items()}
        for key, item in value.items():
            assert key in names, f"{kind} has no {key}"
            walk(item, known.openapi_types[names[key]])

for document, kind in zip(json.load(sys.stdin), ["V1alpha1ClusterServingRuntime", "V1beta1InferenceService"]):
    walk(document, kind)
"""


@pytest.mark.skipif("KRONSERVE_KSERVE_PYTHON" not in os.environ, reason="KRONSERVE_KSERVE_PYTHON is not set")
def test_kserve_s_own_models_know_every_field():
    runtime, service = documents("kserve.yaml")
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    command = [os.environ["KRONSERVE_KSERVE_PYTHON"], "-c", WALK]

    def known(given: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=120)

    assert known([runtime, service]).returncode == 0, known([runtime, service]).stderr
    service["spec"]["predictor"]["model"]["storageURL"] = "x"
    assert "has no storageURL" in known([runtime, service]).stderr
    containers = runtime["spec"]["containers"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": containers}}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
