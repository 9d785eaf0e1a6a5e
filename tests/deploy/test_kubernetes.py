"""The manifests, as kustomize builds them: valid by the API's schemas, and true of the service."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import jsonpatch
import kubernetes_validate
import pytest
import yaml

from app.main import create_app
from app.settings import Settings, describe_settings
from tests.deploy.promql import Series, selectors
from tests.deploy.test_containers import SERVICES
from tests.live.served import ROOT

KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
OVERLAYS: Final = ("cpu", "gpu")


def _load(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def build(directory: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization, made of what ours use alone: resources, components and JSON patches."""
    objects: list[dict[str, Any]] = []
    _apply(directory, objects)
    return objects


def _apply(directory: Path, objects: list[dict[str, Any]]) -> None:
    kustomization = _load(directory / "kustomization.yaml")
    assert kustomization.keys() <= {"apiVersion", "kind", "resources", "components", "patches"}
    for name in kustomization.get("resources", ()):
        resource = directory / name
        objects += build(resource) if resource.is_dir() else yaml.safe_load_all(resource.read_text(encoding="utf-8"))
    for name in kustomization.get("components", ()):
        _apply(directory / name, objects)
    for patch in kustomization.get("patches", ()):
        (target,) = [each for each in objects if _is(each, **patch["target"])]
        jsonpatch.apply_patch(target, _load(directory / patch["path"]), in_place=True)


def _is(each: dict[str, Any], kind: str, name: str) -> bool:
    return (each["kind"], each["metadata"]["name"]) == (kind, name)


BUILT: Final = {overlay: build(KUBERNETES / "overlays" / overlay) for overlay in OVERLAYS}
OBJECTS: Final = [(overlay, each) for overlay in OVERLAYS for each in BUILT[overlay]]
DEPLOYMENTS: Final = [(overlay, each) for overlay, each in OBJECTS if each["kind"] == "Deployment"]


def _name(value: object) -> str:
    return f"{value['kind']} {value['metadata']['name']}" if isinstance(value, dict) else str(value)


def _get(overlay: str, kind: str, name: str = "sentiment") -> dict[str, Any]:
    (found,) = [each for each in BUILT[overlay] if _is(each, kind, name)]
    return found


def _service_container(overlay: str) -> dict[str, Any]:
    (container,) = _get(overlay, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(("overlay", "each"), OBJECTS, ids=_name)
def test_an_object_is_valid_by_the_schema_of_the_api(overlay: str, each: dict[str, Any], version: str) -> None:  # noqa: ARG001 (names the test)
    kubernetes_validate.validate(each, version, strict=True)


def test_a_misspelt_field_is_noticed() -> None:
    wrong = {**_get("cpu", "Service"), "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.30", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_same(overlay: str) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed; what it would build is checked as this file builds it")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    built = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout  # noqa: S603
    assert sorted(yaml.safe_load_all(built), key=_name) == sorted(BUILT[overlay], key=_name)


def test_the_component_also_fits_the_overlay_for_processors() -> None:
    objects = build(KUBERNETES / "overlays" / "cpu")
    _apply(KUBERNETES / "components" / "queue-metric", objects)
    (scaler,) = [each for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    assert [metric["type"] for metric in scaler["spec"]["metrics"]] == ["Resource", "Pods"]


@pytest.mark.parametrize(("overlay", "deployment"), DEPLOYMENTS, ids=_name)
def test_a_pod_meets_the_restricted_security_standard_and_is_bounded(overlay: str, deployment: dict[str, Any]) -> None:  # noqa: ARG001 (names the test)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert re.search(r":[\w.-]+$", container["image"])


@pytest.mark.parametrize(("overlay", "deployment"), DEPLOYMENTS, ids=_name)
def test_what_selects_pods_finds_them(overlay: str, deployment: dict[str, Any]) -> None:
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert _get(overlay, "Service", name)["spec"]["selector"] == labels
    assert _get(overlay, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"] == labels
    if name == "sentiment":
        assert _get(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
        (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == labels


@pytest.mark.parametrize(("overlay", "deployment"), DEPLOYMENTS, ids=_name)
def test_every_port_that_is_named_is_there(overlay: str, deployment: dict[str, Any]) -> None:
    name = deployment["metadata"]["name"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    (service_port,) = _get(overlay, "Service", name)["spec"]["ports"]
    policy = [
        port["port"] for rule in _get(overlay, "NetworkPolicy", name)["spec"]["ingress"] for port in rule["ports"]
    ]
    assert {service_port["targetPort"], *policy} == ports


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_what_the_service_answers(overlay: str) -> None:
    container = _service_container(overlay)
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    assert set(asked.values()) <= create_app(Settings()).openapi()["paths"].keys()
    assert container["ports"][0]["containerPort"] == Settings().server.port


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_environment_is_of_settings_that_exist(overlay: str) -> None:
    names = {each["name"] for each in _service_container(overlay)["env"]}
    assert {name for name in names if name.startswith("SENTIMENT_")} <= describe_settings().keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_time_to_be_forgotten_and_to_answer_what_it_accepted(overlay: str) -> None:
    server, container = Settings().server, _service_container(overlay)
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = container["readinessProbe"]
    assert pause_s >= probe["periodSeconds"]
    grace_s = _get(overlay, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > pause_s + server.drain_s + server.shutdown_timeout_s


def test_only_the_gpu_overlay_asks_for_a_gpu_and_its_image() -> None:
    cpu, gpu = (_service_container(overlay) for overlay in OVERLAYS)
    assert [container["image"] for container in (cpu, gpu)] == [
        SERVICES[f"sentiment-{kind}"]["image"] for kind in OVERLAYS
    ]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "SENTIMENT_MODEL__PROVIDER", "value": "cuda"} in gpu["env"]


def test_redis_runs_as_in_the_composition() -> None:
    (redis,) = _get("cpu", "Deployment", "sentiment-redis")["spec"]["template"]["spec"]["containers"]
    assert redis["image"] == SERVICES["redis"]["image"]
    command = [("chosen" if word == "$(REDISCLI_AUTH)" else word) for word in redis["args"]]
    assert SERVICES["redis"]["command"] == command


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_scales_the_deployment_by_what_tells_its_load(overlay: str) -> None:
    spec = _get(overlay, "HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "sentiment"}
    assert [metric["type"] for metric in spec["metrics"]] == {"cpu": ["Resource"], "gpu": ["Pods"]}[overlay]
    assert "replicas" not in _get(overlay, "Deployment")["spec"]


def test_prometheus_finds_the_pods_by_their_label_and_port() -> None:
    (scrape,) = _load(ROOT / "deploy/prometheus/kubernetes.yml")["scrape_configs"]
    (selector,) = scrape["kubernetes_sd_configs"][0]["selectors"]
    ((key, value),) = _get("cpu", "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert selector["label"] == f"{key}={value}"
    (port,) = [rule["regex"] for rule in scrape["relabel_configs"] if rule.get("action") == "keep"]
    assert port == _service_container("cpu")["ports"][0]["name"]
    assert scrape["job_name"] == "sentiment"


def test_the_adapter_answers_what_the_autoscaler_asks_by_what_a_server_exposes(exposed: list[Series]) -> None:
    (metric,) = _get("gpu", "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = _load(KUBERNETES / "adapter.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (series,) = selectors(rule["seriesQuery"])
    filled = {"<<.Series>>": series.name, "<<.LabelMatchers>>": 'pod=~".*"', "<<.GroupBy>>": "pod"}
    query = rule["metricsQuery"]
    for place, value in filled.items():
        query = query.replace(place, value)
    (selector,) = selectors(query)
    assert any(map(selector.selects, exposed))
