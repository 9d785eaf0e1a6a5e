import os
import socket
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import onnxruntime
import pytest

from app.doctor import Finding, diagnose
from app.inference.bundle import TOKENIZER
from app.inference.processor import usable_threads
from app.security.keys import add_key
from tests.redis_server import running_redis
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    for variable in os.environ:
        if variable.upper().startswith("SENTIMENT_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("SENTIMENT_MODEL__PATH", str(tiny_bundle))
    monkeypatch.setenv("SENTIMENT_SERVER__PORT", "0")


def _findings() -> dict[str, Finding]:
    return {finding.subject: finding for finding in diagnose()}


def _failures() -> list[str]:
    return [finding.subject for finding in diagnose() if finding.fix]


def test_where_all_is_well_nothing_is_to_be_fixed() -> None:
    findings = _findings()
    assert [finding for finding in findings.values() if finding.fix] == []
    assert findings["cpu"].detail == "fp32, 7 golden texts answered as recorded"
    assert findings["bundle"].detail == "tiny 0.0.1: 3 files as recorded"
    assert findings["settings"].detail == "from SENTIMENT_SERVER__PORT, SENTIMENT_MODEL__PATH"


def test_a_provider_that_nobody_asked_for_may_be_absent() -> None:
    findings = _findings()
    missing = "openvino" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cuda"
    assert findings[missing].absent
    assert findings[missing].render().startswith("absent  ")


def test_a_provider_that_was_asked_for_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "openvino" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cuda"
    monkeypatch.setenv("SENTIMENT_MODEL__PROVIDER", missing)
    findings = _findings()
    assert [finding.subject for finding in findings.values() if finding.fix] == [missing]
    assert "install the extra" in findings[missing].detail
    assert "would run" not in findings


def test_a_misspelt_setting_ends_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MODEL__PTAH", "models")
    *_, last = diagnose()
    assert last.subject == "settings"
    assert "did you mean SENTIMENT_MODEL__PATH?" in last.detail
    assert last.fix


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_that_is_taken_is_found(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setenv("SENTIMENT_SERVER__PORT", str(taken))
    port = _findings()["port"]
    assert port.detail == f"127.0.0.1:{taken} cannot be had: Address already in use"
    assert port.fix == "stop what listens there, or set SENTIMENT_SERVER__PORT"


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine_is_found(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("SENTIMENT_SERVER__PORT", "8000")
    monkeypatch.setenv("SENTIMENT_SERVER__HOST", host)
    assert _findings()["port"].fix == "set SENTIMENT_SERVER__HOST to an address of this machine"


def test_a_door_without_a_lock_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _findings()["keys"].absent
    monkeypatch.setenv("SENTIMENT_SERVER__HOST", "0.0.0.0")  # noqa: S104 (that is what is found)
    assert _failures() == ["keys"]
    file = tmp_path / "keys.toml"
    monkeypatch.setenv("SENTIMENT_SECURITY__KEYS_FILE", str(file))
    assert _failures() == ["keys"]
    add_key(file, "shop", scopes=["classify"], rate_limits=None)
    assert _findings()["keys"] == Finding("keys", f"1 in {file}")


def test_a_redis_that_answers_is_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_redis(tmp_path, "--requirepass", "secret") as redis:
        monkeypatch.setenv("SENTIMENT_CACHE__REDIS_URL", f"redis://:secret@{redis.address}")
        finding = _findings()["redis"]
    assert finding.fix is None
    assert finding.detail.startswith("answers in ")


@pytest.mark.parametrize(
    ("url", "reason"), [("redis://{}", "auth"), ("redis://:wrong@{}", "auth"), ("redis://127.0.0.1:1", "connection")]
)
def test_a_redis_that_does_not_answer_is_found_and_no_password_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, reason: str
) -> None:
    with running_redis(tmp_path, "--requirepass", "secret") as redis:
        monkeypatch.setenv("SENTIMENT_CACHE__REDIS_URL", url.format(redis.address))
        finding = _findings()["redis"]
    assert finding.detail.startswith(reason)
    assert finding.fix is not None
    assert "wrong" not in finding.render()


def test_a_database_of_jobs_that_answers_is_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SENTIMENT_JOBS__URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    assert _findings()["jobs"] == Finding("jobs", "0 in the database, 0 of 4096 MiB")


@pytest.mark.parametrize("url", ["sqlite:////nowhere/jobs.db", "postgresql://u:secret@127.0.0.1:1/n", "mysql://h/n"])
def test_a_database_of_jobs_that_cannot_be_used_is_found_and_no_password_told(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SENTIMENT_JOBS__URL", url)
    finding = _findings()["jobs"]
    assert finding.fix is not None
    assert "secret" not in finding.render()


def test_sources_of_jobs_that_are_none_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SENTIMENT_JOBS__URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    monkeypatch.setenv("SENTIMENT_JOBS__SOURCES", "files.example")
    assert _findings()["jobs"].fix == "correct SENTIMENT_JOBS__SOURCES"


def test_a_database_of_jobs_that_keeps_silent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.doctor._PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("SENTIMENT_JOBS__URL", f"postgresql://u:secret@127.0.0.1:{silent.getsockname()[1]}/n")
        finding = _findings()["jobs"]
    assert finding.detail == "the database does not answer within 0.2 s"
    assert finding.fix is not None


def test_an_address_of_redis_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_CACHE__REDIS_URL", "http://:secret@cache")
    finding = _findings()["redis"]
    assert finding.fix == "correct SENTIMENT_CACHE__REDIS_URL"
    assert "secret" not in finding.render()


def test_more_threads_than_there_are_processors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MODEL__THREADS", "4096")
    assert _failures() == ["threads"]


def test_more_threads_in_all_processes_than_there_are_processors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_SERVER__PROCESSES", str(usable_threads()))
    assert _findings()["threads"].fix is None
    monkeypatch.setenv("SENTIMENT_MODEL__THREADS", "2")
    assert _findings()["threads"].fix == "set SENTIMENT_MODEL__THREADS to 0, or to 1"


def test_a_damaged_bundle_ends_the_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (write_tiny_bundle(tmp_path) / TOKENIZER).write_text("{}")
    monkeypatch.setenv("SENTIMENT_MODEL__PATH", str(tmp_path))
    *_, last = diagnose()
    assert last.subject == "bundle"
    assert "damaged" in last.detail
    assert last.fix


def test_two_wheels_of_onnx_runtime_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for wheel in ("onnxruntime", "onnxruntime_gpu"):
        record = tmp_path / f"{wheel}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (runtime,) = islice(diagnose(), 1, 2)
    assert runtime.fix is not None
    assert runtime.fix.startswith("pip uninstall onnxruntime onnxruntime-gpu")


def test_that_there_is_no_onnx_runtime_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    (runtime,) = islice(diagnose(), 1, 2)
    assert (runtime.detail, runtime.fix) == ("not installed", "pip install '.[cpu]', or '.[gpu]' for an NVIDIA GPU")
