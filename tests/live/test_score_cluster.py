"""`score --engine ray` as its users run it, on a cluster of two nodes: processes are killed, nothing is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.live.served import ROOT, START_S, run_command

pytest.importorskip("ray.data")

_ROWS = 25_000
_ODD = ("", 5, None, ["好"], "半\ud800")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run two nodes with a processor each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # which by default let every other program run first
        from ray.cluster_utils import Cluster  # noqa: PLC0415  # reads the environment

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster.address
        finally:
            cluster.shutdown()


def _environment(bundle: Path) -> dict[str, str]:
    return {**os.environ, "SENTIMENT_MODEL__PATH": str(bundle), "SENTIMENT_MODEL__PROVIDER": "cpu"}


def _start(bundle: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 (our own program)
        [sys.executable, "-m", "app", "score", *map(str, arguments)], cwd=ROOT, env=_environment(bundle),
        stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip


def _run(bundle: Path, *arguments: str | Path) -> str:
    """Return what it said."""
    process = _start(bundle, *arguments)
    _, said = process.communicate(timeout=START_S)
    assert process.returncode == 0, said
    return said


def _text(number: int) -> str:
    return f"{'好差吗'[number % 3]}，\n第{number}次"


def _answered(parts: Path) -> int:
    return len(list(parts.glob("*.answers")))


def _until_some_are_answered(process: subprocess.Popen[str], parts: Path) -> None:
    """Return in the middle of the work."""
    while not _answered(parts):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)
    assert _answered(parts) < len(list(parts.glob("*.texts")))


def test_a_url_is_answered_as_a_file_of_this_machine_is(tmp_path: Path, tiny_bundle: Path, address: str) -> None:
    texts = [_ODD[number // 1_000 % 5] if number % 1_000 == 0 else _text(number) for number in range(9_000)]
    rows = ({"id": number, "text": text, "more": [number, None]} for number, text in enumerate(texts))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    here = _run(tiny_bundle, tmp_path / "in.jsonl", "--output", tmp_path / "here.csv", "--id-column", "id")
    url = (tmp_path / "in.jsonl").as_uri()
    arguments = ("--id-column", "id", "--engine", "ray", "--ray-address", address)
    there = _run(tiny_bundle, url, "--output", f"{(tmp_path / 'there.csv').as_uri()}?use_mmap", *arguments)
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert there[there.index("label") :] == here[here.index("label") :]  # the summaries
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "here.csv", "there.csv"}


def test_a_worker_that_is_killed_loses_and_doubles_nothing(tmp_path: Path, tiny_bundle: Path, address: str) -> None:
    with (tmp_path / "in.csv").open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([["id", "text"], *([number, _text(number)] for number in range(_ROWS))])
    _run(tiny_bundle, tmp_path / "in.csv", "--output", tmp_path / "here.jsonl")
    output = tmp_path / "there.jsonl"
    process = _start(tiny_bundle, tmp_path / "in.csv", "--output", output, "--engine", "ray", "--ray-address", address)
    _until_some_are_answered(process, tmp_path / "there.jsonl.parts")
    processes = psutil.Process().children(recursive=True)
    workers = [each for each in processes if "MapWorker" in "".join(each.cmdline())]
    assert len(workers) == 2  # one a node
    workers[0].kill()
    _, said = process.communicate(timeout=START_S)
    assert process.returncode == 0, said
    assert output.read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_a_driver_that_is_killed_goes_on_with_what_is_left(tmp_path: Path, tiny_bundle: Path, address: str) -> None:
    file, output, parts = tmp_path / "in.parquet", tmp_path / "there.parquet", tmp_path / "there.parquet.parts"
    table = pa.table({"id": pa.array(range(_ROWS), pa.int16()), "text": [_text(number) for number in range(_ROWS)]})
    pq.write_table(table, file)
    _run(tiny_bundle, file, "--output", tmp_path / "here.parquet")
    arguments = (file, "--output", output, "--engine", "ray", "--ray-address", address)
    process = _start(tiny_bundle, *arguments)
    _until_some_are_answered(process, parts)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    before = {part: part.stat().st_mtime_ns for part in parts.glob("*.answers")}

    def assert_refused(reason: str, *more: str) -> None:
        refused = run_command("score", *map(str, arguments), *more, MODEL__PATH=str(tiny_bundle))
        assert refused.returncode == 1
        assert reason in refused.stderr

    assert_refused("is of a run that did not end: go on with --resume, or delete it")
    pq.write_table(table.slice(1), file)
    assert_refused("has other texts than when the run began", "--resume")
    pq.write_table(table, file)
    assert before.keys() <= set(parts.glob("*.answers"))

    said = _run(tiny_bundle, *arguments, "--resume")
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "here.parquet"))
    now = int(said.split("rows, ")[1].split(" of them now")[0].replace(",", ""))
    assert 0 < now <= _ROWS - 4_096 * len(before)
    assert not parts.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-", "--output", "out.csv"], "--engine ray takes a file and --output"),
        (["README.md"], "--engine ray takes a file and --output"),
        (["absent.jsonl", "--output", "out.csv"], "there is no file"),
        (["nowhere://in.jsonl", "--output", "out.csv"], "nowhere:// is no storage"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(tiny_bundle: Path, arguments: list[str], reason: str) -> None:
    done = run_command("score", *arguments, "--engine", "ray", MODEL__PATH=str(tiny_bundle), MODEL__PROVIDER="cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('gone', name='ray')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_command("score", "README.md", "--output", str(tmp_path / "out.csv"), "--engine", "ray")
    assert (done.returncode, done.stderr) == (1, "error: ray is not installed: it is part of the extra [ray]\n")
