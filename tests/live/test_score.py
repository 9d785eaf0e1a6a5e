"""`score` as its users run it: a process of its own, on the real bundle and the tiny one, killed and started again."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.live.served import ROOT, START_S, assert_same_answer, made_up_texts, run_command

_TEXTS = ["太好吃了，下次还来", "", *made_up_texts(30), '带,逗号、“引号”和"引号"', "两行\n文字", "太好吃了，下次还来"]


def _write_csv(file: Path, encoding: str = "utf-8") -> Path:
    with file.open("w", encoding=encoding, newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["text", "id"])
        rows.writerows([text, 7] for text in _TEXTS)
    return file


def _score(file: Path, *arguments: str, output: str = "answers.jsonl") -> list[dict[str, Any]]:
    written = file.with_name(output)
    done = run_command("score", str(file), "--output", str(written), *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]


def _assert_same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    for answer, expected in zip(some, others, strict=True):
        assert answer.get("error") == expected.get("error")
        if "error" not in answer:
            assert_same_answer(answer["sentiment"], expected["sentiment"])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("score") / "texts.jsonl"
    rows = [{"text": text, "id": number} for number, text in enumerate(_TEXTS)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return _score(file)


def test_there_is_one_answer_per_text_in_order(answers: list[dict[str, Any]]) -> None:
    assert [(answer["id"], answer["text"]) for answer in answers] == list(enumerate(_TEXTS))
    assert ["error" in answer for answer in answers] == [not text for text in _TEXTS]
    assert answers[0]["sentiment"] == answers[-1]["sentiment"]
    for text, answer in zip(_TEXTS, answers, strict=True):
        if text:
            assert answer["sentiment"]["truncated"] == (len(text) > 260)
            assert sum(answer["sentiment"]["probabilities"].values()) == pytest.approx(1, abs=2e-4)


def test_csv_as_spreadsheets_write_it_is_answered_as_json_lines_are(
    tmp_path: Path, answers: list[dict[str, Any]]
) -> None:
    _assert_same(_score(_write_csv(tmp_path / "texts.csv", "utf-8-sig")), answers)  # with a byte order mark


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("texts.csv", "id,review\n1,好\n".encode(), "line 2: no text in column 'text'"),
        ("texts.csv", "text\n很好\n".encode("gbk"), "texts.csv is not in UTF-8"),
        ("texts.jsonl", b"5\n", "line 1: not a JSON object"),
        ("texts.jsonl", '{"text": "很好"}\n'.encode("gbk"), "texts.jsonl is not in UTF-8"),
        ("texts.parquet", b"no Parquet", "texts.parquet"),
    ],
    ids=["no column", "GBK in CSV", "no object", "GBK in JSON lines", "no Parquet"],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = run_command("score", str(tmp_path / name), "--output", str(tmp_path / "answers"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent.jsonl"], "there is no file absent.jsonl"),
        (["-", "--resume"], "can neither be resumed"),
        (["-", "--output-format", "parquet"], "nor take Parquet"),
        (["-", "--input-format", "parquet"], "Parquet cannot be read from standard input"),
        (["-", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer"),
        (["-", "--url", "http://127.0.0.1:9", "--key", "ABSENT"], "no environment variable ABSENT"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(tiny_bundle: Path, arguments: list[str], reason: str) -> None:
    done = run_command("score", *arguments, MODEL__PATH=str(tiny_bundle), MODEL__PROVIDER="cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


# With the tiny bundle


def _environment(bundle: Path) -> dict[str, str]:
    return {**os.environ, "SENTIMENT_MODEL__PATH": str(bundle), "SENTIMENT_MODEL__PROVIDER": "cpu"}


def _command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "app", "score", *arguments]


def _pipe(bundle: Path, content: bytes, *arguments: str) -> bytes:
    done = subprocess.run(  # noqa: S603 (our own program)
        _command(*arguments), input=content, cwd=ROOT, env=_environment(bundle), capture_output=True, timeout=START_S,
        check=True,
    )  # fmt: skip
    return done.stdout


def _rows(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"{'好差吗'[number % 3]}，\n第{number}次"} for number in range(count)]


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_standard_input_to_standard_output_is_a_filter(tiny_bundle: Path) -> None:
    rows = _rows(700)
    written = [json.loads(line) for line in _pipe(tiny_bundle, _jsonl(rows), "-").splitlines()]
    assert [{"id": row["id"], "text": row["text"]} for row in written] == rows
    assert [row["sentiment"]["label"] for row in written[:3]] == ["positive", "negative", "neutral"]


def test_a_pipe_may_carry_csv(tiny_bundle: Path) -> None:
    content = "评论,编号\n好,1\n差,2\n".encode()
    formats = ("--input-format", "csv", "--output-format", "csv")
    written = _pipe(tiny_bundle, content, "-", *formats, "--text-column", "评论").decode()
    rows = list(csv.DictReader(io.StringIO(written, newline="")))
    assert [(row["编号"], row["sentiment_label"]) for row in rows] == [("1", "positive"), ("2", "negative")]


def test_standard_input_may_become_parquet(tmp_path: Path, tiny_bundle: Path) -> None:
    _pipe(tiny_bundle, _jsonl(_rows(300)), "-", "--output", str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == list(range(300))
    assert {file.name for file in tmp_path.iterdir()} == {"out.parquet"}


def test_a_reader_that_has_enough_ends_it_without_a_word(tiny_bundle: Path) -> None:
    with subprocess.Popen(  # noqa: S603 (our own program)
        _command("-"), cwd=ROOT, env=_environment(tiny_bundle), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(_jsonl(_rows(2_000)))
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


_KILLED_ROWS = 25_000


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_run_killed_and_gone_on_with_writes_every_row_once(tmp_path: Path, tiny_bundle: Path, form: str) -> None:
    rows = _rows(_KILLED_ROWS)
    file = tmp_path / f"in.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif form == "csv":
        with file.open("w", encoding="utf-8", newline="") as lines:
            table = csv.DictWriter(lines, ["id", "text"])
            table.writeheader()
            table.writerows(rows)
    else:
        file.write_bytes(_jsonl(rows))

    def run(output: Path, *, kill: bool) -> None:
        state = output.with_name(output.name + ".part.json")
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen(  # noqa: S603 (our own program)
            _command(str(file), "--output", str(output), "--resume"), cwd=ROOT, env=_environment(tiny_bundle),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while kill and process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.005)
        if kill:
            process.kill()
            assert process.wait() == -9
            assert not output.exists()
        else:
            assert process.wait(START_S) == 0

    whole, output = tmp_path / f"whole.{form}", tmp_path / f"out.{form}"
    run(whole, kill=False)
    run(output, kill=True)
    done = json.loads((tmp_path / f"out.{form}.part.json").read_bytes())["rows"]
    assert 0 < done < _KILLED_ROWS
    run(output, kill=False)
    if form == "parquet":
        assert pq.read_table(output).equals(pq.read_table(whole))
    else:
        assert output.read_bytes() == whole.read_bytes()


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(_jsonl(_rows(8 * _KILLED_ROWS)))
    with subprocess.Popen(  # noqa: S603 (our own program)
        _command(str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.csv")), cwd=ROOT,
        env=_environment(tiny_bundle), stderr=subprocess.PIPE, encoding="utf-8",
    ) as process:  # fmt: skip
        while not (tmp_path / "out.csv.part.json").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "error: interrupted; --resume goes on\n"
    assert not (tmp_path / "out.csv").exists()


def test_memory_does_not_grow_with_the_file(tmp_path: Path, tiny_bundle: Path) -> None:
    def peak_mib(count: int) -> float:
        file = tmp_path / f"{count}.jsonl"
        file.write_bytes(_jsonl([{**row, "more": "x" * 1_000} for row in _rows(count)]))
        process = subprocess.Popen(  # noqa: S603 (our own program)
            _command(str(file), "--output", str(tmp_path / f"{count}.csv")), cwd=ROOT,
            env={**_environment(tiny_bundle), "SENTIMENT_CACHE__MAX_BYTES": "0"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        peak = 0
        while process.poll() is None:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.02)
        assert process.returncode == 0
        return peak / 2**20

    assert peak_mib(25_000) - peak_mib(5_000) < 20  # the larger file has 20 MB more, as text alone
