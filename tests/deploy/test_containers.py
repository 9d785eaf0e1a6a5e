"""The image and the composition: no engine runs here, but what an engine would be told is checked, and partly done."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser

from app.settings import Settings, describe_settings
from tests.live.served import ROOT, RunningServer

OPERATIONS: Final = ROOT.joinpath("docs", "operations.md").read_text(encoding="utf-8")


class Instruction(NamedTuple):
    name: str
    value: str


def _stages() -> dict[str, list[Instruction]]:
    """Return the instructions of each stage of the Dockerfile, those of the stage it begins with included."""
    parser = DockerfileParser(str(ROOT / "Dockerfile"))
    stages: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for each in parser.structure:
        if each["instruction"] == "FROM":
            base, _, name = each["value"].split()
            current = stages[name] = list(stages.get(base, ()))
        elif each["instruction"] != "COMMENT":
            current.append(Instruction(each["instruction"], each["value"]))
    return stages


STAGES: Final = _stages()
SERVING: Final = ("cpu", "gpu")


def _values(stage: str, name: str) -> list[str]:
    return [each.value for each in STAGES[stage] if each.name == name]


def test_hadolint_finds_no_fault() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("stage", SERVING)
def test_nothing_is_installed_where_it_serves_and_nothing_runs_as_root(stage: str) -> None:
    assert _values(stage, "RUN") == []
    assert _values(stage, "USER") == ["10001:10001"]
    assert f"--from=install-{stage} /opt/venv /opt/venv" in _values(stage, "COPY")


def test_what_is_built_by_default_is_for_processors() -> None:
    assert list(STAGES)[-1] == "cpu"


def test_the_image_holds_the_bundle_that_is_served_by_default() -> None:
    assert f"BUNDLE={Settings().model.path}" in _values("cpu", "ARG")
    assert "${BUNDLE} ${BUNDLE}" in _values("cpu", "COPY")


def test_what_the_image_is_made_of_gets_past_the_ignore_file() -> None:
    allowed = set(re.findall(r"^!(\S+)$", ROOT.joinpath(".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    copied = [value for stage in STAGES for value in _values(stage, "COPY") if not value.startswith("--from")]
    sources = {source.split("/")[0] for value in copied for source in value.split()[:-1]} - {"${BUNDLE}"}
    assert sources | {"models"} <= allowed


def _environment(stage: str) -> dict[str, str]:
    return dict(word.split("=", 1) for value in _values(stage, "ENV") for word in shlex.split(value))


@pytest.mark.parametrize("stage", SERVING)
def test_the_image_sets_settings_that_exist(stage: str) -> None:
    settings = {name for name in _environment(stage) if name.startswith("SENTIMENT_")}
    assert settings <= describe_settings().keys()


def _healthcheck(port: str) -> int:
    (value,) = _values("cpu", "HEALTHCHECK")
    command = json.loads(value[value.index("[") :])
    assert command.pop(0) == "python"
    environment = {**os.environ, "SENTIMENT_SERVER__PORT": port}
    done = subprocess.run([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
    return done.returncode


def test_the_health_check_tells_a_ready_server_from_none(visited: RunningServer) -> None:
    assert _healthcheck(visited.address.rpartition(":")[2]) == 0
    assert _healthcheck("1") == 1


@pytest.mark.network
def test_the_serving_stage_installs_what_serving_needs_and_no_more(tmp_path: Path) -> None:
    for name, value in STAGES["install-cpu"]:
        match name:
            case "RUN":
                _run(value.replace("/opt/venv", str(tmp_path / "venv")), tmp_path / "build")
            case "COPY":
                *sources, _ = value.split()
                for source in sources:
                    _copy(ROOT / source, tmp_path / "build")
            case "WORKDIR":
                (tmp_path / "build").mkdir()
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    names = {file.name.lower() for file in packages.iterdir()}
    assert "onnxruntime" in names
    unwanted = {"torch", "transformers", "sklearn", "onnx", "pip", "setuptools", "wheel", "pytest", "cmake", "ninja"}
    assert names & unwanted == set()
    assert "training" in {
        file.name for file in (packages / "app").iterdir()
    }  # our own, not the empty one made at first

    megabytes = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file()) / 1e6
    (stated,) = re.findall(r"site-packages of the image take (\d+) MB", OPERATIONS)
    assert megabytes == pytest.approx(int(stated), rel=0.1), f"{megabytes:.0f} MB"

    bundle = Settings().model.path
    shutil.copytree(ROOT / bundle, tmp_path / bundle)
    environment = {**_environment("cpu"), "PATH": str(tmp_path / "venv/bin"), "SENTIMENT_SERVER__PORT": "0"}
    doctor = [str(tmp_path / "venv/bin/chinese-sentiment"), "doctor"]
    failed = [line.split()[1] for line in _output(doctor, tmp_path, environment, 1) if line.startswith("FAILED")]
    assert failed == ["keys"]  # which is for whoever runs the image to choose
    environment["SENTIMENT_SECURITY__ALLOW_ANONYMOUS"] = "true"
    _output(doctor, tmp_path, environment, 0)


def _output(command: list[str], directory: Path, environment: dict[str, str], status: int) -> list[str]:
    done = subprocess.run(  # noqa: S603
        command, cwd=directory, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout.splitlines()


def _run(command: str, directory: Path) -> None:
    """Run a command as the image's build does, with the Python and pip of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(  # noqa: S602 (our own Dockerfile)
        command, shell=True, cwd=directory, env={**os.environ, "PATH": path}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def _copy(source: Path, directory: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, directory / source.name, dirs_exist_ok=True, ignore=ignored)
    else:
        shutil.copy(source, directory)


def _composition() -> dict[str, Any]:
    """Return docker-compose.yml with its variables filled in: a default where it has one."""
    text = ROOT.joinpath("docker-compose.yml").read_text(encoding="utf-8")
    filled = re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda found: found[2] if found[1] == "-" else "chosen", text)
    assert "$" not in filled
    composition: dict[str, Any] = yaml.safe_load(filled)
    return composition


COMPOSITION: Final = _composition()
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSITION["services"]


def test_the_composition_is_as_specified() -> None:
    assert set(PyCompose.from_json(json.dumps(COMPOSITION)).service_names()) == SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_bounded_watched_and_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or _values(service["build"]["target"], "HEALTHCHECK")
    assert "build" in service or re.search(r":[\w.-]*\d", service["image"]), "an image needs a version"


@pytest.mark.parametrize("name", SERVICES)
def test_only_this_machine_reaches_what_is_published(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_every_port_of_the_machine_is_published_once() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports["sentiment-cpu"] == ports.pop("sentiment-gpu")  # of which one runs
    assert len({port for each in ports.values() for port in each}) == len(ports)


@pytest.mark.parametrize("kind", SERVING)
def test_each_profile_runs_its_image_after_the_cache(kind: str) -> None:
    service = SERVICES[f"sentiment-{kind}"]
    assert (service["profiles"], service["build"]["target"]) == ([kind], kind)
    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert set(service["environment"]) <= describe_settings().keys()
    assert service["networks"]["default"]["aliases"] == ["sentiment"]


def test_only_the_gpu_profile_reserves_a_gpu() -> None:
    (device,) = SERVICES["sentiment-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert SERVICES["sentiment-gpu"]["environment"]["SENTIMENT_MODEL__PROVIDER"] == "cuda"
    assert "reservations" not in SERVICES["sentiment-cpu"]["deploy"]["resources"]


@pytest.mark.parametrize("kind", SERVING)
def test_a_container_has_time_to_answer_what_it_accepted(kind: str) -> None:
    server = Settings().server
    grace = SERVICES[f"sentiment-{kind}"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > server.shutdown_timeout_s + server.drain_s


def test_the_cache_asks_for_the_password_that_the_service_sends() -> None:
    redis, text = SERVICES["redis"]["command"], ROOT.joinpath("docker-compose.yml").read_text(encoding="utf-8")
    options = dict(zip(redis[1::2], redis[2::2], strict=True))
    assert options["--maxmemory-policy"] == "allkeys-lru"
    assert options["--maxmemory"] == "256mb"
    assert "redis://:${REDIS_PASSWORD:?" in text
    assert re.search(r"- --requirepass\n +- \$\{REDIS_PASSWORD:\?", text)
    assert "ports" not in SERVICES["redis"]


def test_every_password_has_a_place_in_the_example() -> None:
    text = ROOT.joinpath("docker-compose.yml").read_text(encoding="utf-8")
    example = ROOT.joinpath(".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+):\?", text)) == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))


def test_what_is_mounted_is_there_and_where_it_is_looked_for() -> None:
    mounts: dict[str, dict[str, str]] = {}
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            mounts.setdefault(name, {})[target] = source
            assert source in COMPOSITION["volumes"] or ROOT.joinpath(source).exists()
    assert mounts["prometheus"]["/etc/prometheus"] == "./deploy/prometheus"
    providers = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/sentiment.yml").read_text())["providers"]
    assert [provider["options"]["path"] for provider in providers] == ["/etc/grafana/dashboards"]
    assert mounts["grafana"]["/etc/grafana/dashboards"] == "./deploy/grafana/dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "deploy/grafana/dashboards" / Path(home).name).exists()


def test_prometheus_finds_the_service_and_grafana_finds_prometheus() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert found["names"] == ["sentiment"]
    assert str(found["port"]) == SERVICES["sentiment-cpu"]["ports"][0].rpartition(":")[2]
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
