import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from app.settings import Settings, load_settings
from loadtest.bench_gpu import CASES, Case, Figures, Report, count_flips, find_gpus, gpu_memory_mib, render
from loadtest.load import Load

_NO_DRIVER = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has NVIDIA's tools")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_is_asked_for_by_settings_that_exist(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in case.settings.items():
        monkeypatch.setenv(variable, value)
    model = load_settings().model
    assert (model.provider, model.precision, model.cuda_graphs) == (case.provider, case.precision, case.graphs)
    assert model.path == Settings().model.path


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert Case("cuda", "fp16", graphs=True).name == "cuda fp16, CUDA graphs"


def test_a_text_flips_once_if_the_label_of_any_head_changes() -> None:
    before = np.array([[0.6, 0.4, 0.7, 0.3], [0.6, 0.4, 0.7, 0.3], [0.6, 0.4, 0.7, 0.3], [0.6, 0.4, 0.7, 0.3]])
    after = np.array([[0.9, 0.1, 0.6, 0.4], [0.4, 0.6, 0.7, 0.3], [0.6, 0.4, 0.2, 0.8], [0.1, 0.9, 0.1, 0.9]])
    assert count_flips(after, before, heads=(2, 2)) == 3
    assert count_flips(after, before, heads=(2,)) == 2


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory in which programs are looked for first."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


@_NO_DRIVER
def test_without_nvidias_tools_there_is_no_gpu_and_no_memory() -> None:
    assert find_gpus() == []
    assert gpu_memory_mib() is None


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        ("NVIDIA L4, 23034 MiB, 580.65", 0, (["NVIDIA L4, 23034 MiB, 580.65"], None)),
        ("812 MiB", 0, (["812 MiB"], 812)),
        ("812 MiB\n30 MiB", 0, (["812 MiB", "30 MiB"], 842)),
        ("[N/A]", 0, (["[N/A]"], None)),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, ([], None)),
    ],
)
def test_nvidia_smi_is_read_line_by_line(
    answer: str, status: int, expected: tuple[list[str], int | None], path: Path
) -> None:
    command = path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {status}\n")
    command.chmod(0o755)
    assert (find_gpus(), gpu_memory_mib()) == expected


def test_the_table_has_a_row_for_each_case_and_says_why_one_does_not_run() -> None:
    load = Load(per_s=2000.4, offered_per_s=2000.4, p50_ms=31.06, p99_ms=64.2, mean_ms=32, errors=0)
    report = Report(
        date="2026-11-22", machine="NVIDIA L4, 4 processor threads", versions={"onnxruntime": "1.31.1"}, texts=100
    )
    report.cases["cuda fp16"] = Figures(2.04, {32: 4000.2, 256: 9000}, 1.5, 812, 3, 0.00412, {64: load, 256: load})
    report.cases["cuda fp32"] = Figures(1, {32: 1000, 256: 2000}, 2, None, 0, 0, {})
    report.cases["tensorrt fp16"] = Figures(error="libnvinfer.so.10 is missing")
    *table, _, source = render(report).splitlines()
    titles, _, half, full, missing = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert dict(zip(titles, half, strict=True)) == {
        "case": "cuda fp16",
        "ready": "2.0 s",
        "texts/s, 32 rows": "4000",
        "texts/s, 256 rows": "9000",
        "a lone text, p50": "1.50 ms",
        "GPU memory": "812 MiB",
        "labels that flip": "3 of 100",
        "largest difference": "0.0041",
        "service, 64 connections: texts/s (p50, p99)": "2000 (31.1 ms, 64.2 ms)",
        "service, 256 connections: texts/s (p50, p99)": "2000 (31.1 ms, 64.2 ms)",
    }
    assert full == ["cuda fp32", "1.0 s", "1000", "2000", "2.00 ms", "–", "0 of 100", "0.0000", "–", "–"]
    assert missing == ["tensorrt fp16", "does not run: libnvinfer.so.10 is missing", *[""] * 8]
    assert source == "2026-11-22; NVIDIA L4, 4 processor threads; onnxruntime 1.31.1."
    assert json.loads(json.dumps(asdict(report)))["cases"]["cuda fp16"]["loads"]["64"]["per_s"] == 2000.4


def test_a_table_in_which_nothing_ran_says_so_too() -> None:
    report = Report(date="2026-11-22", machine="none", versions={}, texts=1, cases={"cuda fp32": Figures(error="no")})
    assert "| cuda fp32 | does not run: no |" in render(report)
