"""The benchmark for GPUs, on providers that every machine has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.served import ROOT, START_S


def _bench(bundle: Path, output: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-m", "loadtest.bench_gpu", "--texts", "48", "--output", str(output), *arguments],
        cwd=ROOT,
        env={**os.environ, "SENTIMENT_MODEL__PATH": str(bundle), **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=START_S,
        check=False,
    )


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has NVIDIA's tools")
def test_without_a_gpu_it_says_so_and_exits_with_1(tiny_bundle: Path, tmp_path: Path) -> None:
    done = _bench(tiny_bundle, tmp_path / "figures")
    assert done.returncode == 1
    assert done.stderr == "error: no GPU is here to measure on: nvidia-smi is not installed or finds none\n"
    assert done.stdout == ""
    assert not (tmp_path / "figures").exists()


def test_without_a_load_generator_it_measures_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    done = _bench(tiny_bundle, tmp_path / "figures", "--provider", "cpu", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: wrk makes the load and is not installed")


def test_a_provider_that_there_is_not_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    done = _bench(tiny_bundle, tmp_path, "--provider", "tpu")
    assert done.returncode == 1
    assert done.stderr == "error: no such provider; there are cuda, tensorrt, openvino, cpu\n"


def test_the_engine_is_measured_without_a_service(tiny_bundle: Path, tmp_path: Path) -> None:
    done = _bench(tiny_bundle, tmp_path, "--provider", "cpu", "--connections", "", "--max-items", "8")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    figures = report["cases"]["cpu fp32"]
    assert figures["error"] is None
    assert figures["flips"] == figures["largest_difference"] == 0
    assert all(per_s > 0 for per_s in figures["texts_per_s"].values())
    assert figures["texts_per_s"].keys() == {"8", "32"}
    assert figures["alone_p50_ms"] > 0
    assert figures["loads"] == {}
    assert done.stdout == (tmp_path / "bench.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_service_is_measured_with_the_same_settings(tiny_bundle: Path, tmp_path: Path) -> None:
    done = _bench(tiny_bundle, tmp_path, "--provider", "cpu", "--connections", "2,4", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    loads = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["cases"]["cpu fp32"]["loads"]
    assert loads.keys() == {"2", "4"}
    for load in loads.values():
        assert load["per_s"] > 0
        assert load["errors"] == 0


def test_a_case_that_does_not_run_says_why_and_if_none_runs_the_exit_status_is_1(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    driver = tmp_path / "nvidia-smi"  # finds a GPU that nothing can use
    driver.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 580.65'\n")
    driver.chmod(0o755)
    done = _bench(
        tiny_bundle, tmp_path, "--provider", "cuda", "--connections", "", PATH=f"{tmp_path}:{os.environ['PATH']}",
        CUDA_VISIBLE_DEVICES="-1",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("does not run: ") == 4
    assert "python -m app bundle half DIRECTORY adds one" in done.stdout
    assert "NVIDIA L4" in done.stdout
