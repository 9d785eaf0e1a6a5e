import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.live.served import assert_same_answer, made_up_texts, run_command

_TEXTS = ["太好吃了，下次还来", "", *made_up_texts(30), '带,逗号、“引号”和"引号"', "两行\n文字", "太好吃了，下次还来"]


def _write_jsonl(file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text, "id": 7}, ensure_ascii=False) + "\n" for text in _TEXTS)


def _write_csv(file: Path, encoding: str = "utf-8") -> None:
    with file.open("w", encoding=encoding, newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["text", "id"])
        rows.writerows([text, 7] for text in _TEXTS)


def _score(file: Path) -> list[dict[str, Any]]:
    output = file.with_suffix(".answers")
    done = run_command("score", str(file), "--output", str(output))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def _assert_same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    for answer, expected in zip(some, others, strict=True):
        assert answer.get("error") == expected.get("error")
        if "error" not in answer:
            assert_same_answer(answer, expected)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("score") / "texts.jsonl"
    _write_jsonl(file)
    return _score(file)


def test_there_is_one_answer_per_text_in_order(answers: list[dict[str, Any]]) -> None:
    assert len(answers) == len(_TEXTS)
    assert ["error" in answer for answer in answers] == [not text for text in _TEXTS]
    assert answers[0] == answers[-1]
    for text, answer in zip(_TEXTS, answers, strict=True):
        if text:
            assert answer["truncated"] == (len(text) > 260)
            assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-4)


def test_csv_is_answered_as_json_lines_are(tmp_path: Path, answers: list[dict[str, Any]]) -> None:
    _write_csv(tmp_path / "texts.csv")
    _assert_same(_score(tmp_path / "texts.csv"), answers)


def test_csv_as_spreadsheets_write_it_is_read_too(tmp_path: Path, answers: list[dict[str, Any]]) -> None:
    _write_csv(tmp_path / "texts.csv", "utf-8-sig")  # with a byte order mark
    _assert_same(_score(tmp_path / "texts.csv"), answers)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("texts.csv", "id,review\n1,好\n".encode(), "line 2: no text in column 'text'"),
        ("texts.csv", "text\n很好\n".encode("gbk"), "texts.csv is not in UTF-8"),
        ("texts.jsonl", '{"text": "好"}\n{"review": "好"}\n'.encode(), "line 2: no text in column 'text'"),
        ("texts.jsonl", b"5\n", "line 1: not a JSON object"),
        ("texts.jsonl", '{"text": "很好"}\n'.encode("gbk"), "texts.jsonl is not in UTF-8"),
    ],
    ids=["no column", "GBK in CSV", "no field", "no object", "GBK in JSON lines"],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = run_command("score", str(tmp_path / name), "--output", str(tmp_path / "answers"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "answers").exists()
