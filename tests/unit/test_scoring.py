"""Scoring files, with answers that a scorer makes up."""

import csv
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from app.domain.errors import CannotProceed
from app.domain.rows import BadRow, Form, form_of
from app.scoring.command import Output, score
from app.scoring.journal import Journal
from app.scoring.output import COLUMNS
from app.scoring.source import Source
from app.scoring.summary import Tally

pytestmark = pytest.mark.anyio

_RUN = {"input": "in", "model": "m"}


def _answer(text: object) -> dict[str, Any]:
    """Return an answer from which its text can be told."""
    if not isinstance(text, str) or not text:
        problem = {"type": "urn:sentiment:problem:empty-text", "title": "Empty text", "detail": "Nothing to read."}
        return {"error": problem}
    label = "positive" if "好" in text else "negative"
    return {
        "sentiment": {
            "label": label,
            "confidence": round(len(text) % 100 / 100, 4),
            "probabilities": {"negative": 0.1, "positive": 0.9},
            "certain": label == "positive",
            "emotion": {"label": "happy", "probabilities": {"happy": 1.0}},
            "truncated": False,
            "cached": True,
            "model": {"name": "made-up", "version": "1"},
        }
    }


class _Scorer:
    """Answers, until it fails after `most` texts."""

    model = "made-up/1"

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self.asked: list[object] = []

    async def answers(self, chunks: AsyncIterator[Sequence[object]]) -> AsyncGenerator[list[bytes], None]:
        async for chunk in chunks:
            for text in chunk:
                if len(self.asked) == self._most:
                    raise CannotProceed("it fails")
                self.asked.append(text)
                yield [json.dumps(_answer(text)).encode()]


async def _score(source: Path, output: Path, scorer: _Scorer | None = None, *, resume: bool = False) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[_Scorer]:
        yield scorer or _Scorer()

    await score(Source(source, form_of(source), "text"), Output(output, form_of(output)), opened(), resume=resume)


def _write(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    match form_of(file):
        case "parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
        case "csv":
            with file.open("w", encoding="utf-8", newline="") as lines:
                table = csv.DictWriter(lines, rows[0])
                table.writeheader()
                table.writerows(rows)
        case _:
            file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return file


def _read(file: Path) -> list[dict[str, Any]]:
    match form_of(file):
        case "parquet":
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
            return rows
        case "csv":
            return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
        case _:
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def _rows(count: int) -> list[dict[str, object]]:
    return [{"id": number, "text": f"{'好差'[number % 2]}，\n第{number}次" * (number % 5)} for number in range(count)]


# Formats


@pytest.mark.parametrize("into", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("out_of", ["jsonl", "csv", "parquet"])
async def test_each_row_comes_back_with_its_answer_in_every_format(tmp_path: Path, out_of: Form, into: Form) -> None:
    rows = _rows(20)
    output = tmp_path / f"out.{into}"
    await _score(_write(tmp_path / f"in.{out_of}", rows), output)
    written = _read(output)
    assert [(int(row["id"]), row["text"]) for row in written] == [(row["id"], row["text"]) for row in rows]
    for row, given_row in zip(written, rows, strict=True):
        answer = _answer(given_row["text"])
        if into == "jsonl":
            answer.get("sentiment", {}).pop("cached", None)
            assert {name: row[name] for name in ("sentiment", "error") if name in row} == answer
        else:
            found = answer.get("sentiment", {})
            assert (row["sentiment_label"] or None) == found.get("label")
            assert (row["sentiment_error"] or None) == (None if found else "empty-text")
            assert (row["sentiment_model"] or None) == ("made-up/1" if found else None)
            assert row["sentiment_confidence"] in {found.get("confidence", ""), str(found.get("confidence")), None}


async def test_only_the_output_is_left_behind(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", _rows(3))
    await _score(source, tmp_path / "out.csv")
    assert _names(tmp_path) == {"in.jsonl", "out.csv"}


@pytest.mark.parametrize("into", ["jsonl", "csv", "parquet"])
async def test_no_rows_have_no_answers(tmp_path: Path, into: Form) -> None:
    (tmp_path / "in.jsonl").touch()
    await _score(tmp_path / "in.jsonl", tmp_path / f"out.{into}")
    assert _read(tmp_path / f"out.{into}") == []


async def test_a_parquet_file_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["好", "差"],
            "when": pa.array([datetime(2026, 11, 22, tzinfo=UTC)] * 2, pa.timestamp("ns", "UTC")),
            "price": pa.array([Decimal("1.10"), None], pa.decimal128(9, 2)),
            "tags": pa.array([["a"], []], pa.list_(pa.string())),
            "photo": pa.array([b"\xff", None], pa.binary()),
            "sentiment_label": ["of another", "run"],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    await _score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    kept = [name for name in table.column_names if name != "sentiment_label"]
    assert written.select(kept).equals(table.select(kept))
    assert written.column_names == [*kept, *COLUMNS]
    assert written["sentiment_label"].to_pylist() == ["positive", "negative"]


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([1, None, 3], pa.array([1, None, 3])),
        ([1, 2.5, None], pa.array([1.0, 2.5, None])),
        ([True, False, None], pa.array([True, False, None])),
        (["a", None, "\ud83d"], pa.array(["a", None, "\\ud83d"])),
        ([None, None, None], pa.array([None, None, None], pa.string())),
        ([1, "a", None], pa.array(["1", '"a"', None])),
        ([1, True, None], pa.array(["1", "true", None])),
        ([{"a": [1]}, None, "b"], pa.array(['{"a": [1]}', None, '"b"'])),
        ([2**63, 1, None], pa.array(["9223372036854775808", "1", None])),
        ([-(2**63), 2**63 - 1, None], pa.array([-(2**63), 2**63 - 1, None])),
    ],
)
async def test_json_has_the_type_in_parquet_that_holds_all_its_values(
    tmp_path: Path, values: list[object], column: Any
) -> None:
    lines = [json.dumps({"text": "好", "more": value}) for value in values]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"text": "好"}']))
    await _score(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")["more"].combine_chunks()
    assert written.equals(pa.concat_arrays([column, pa.nulls(1, column.type)]))


async def test_a_csv_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "好"},
        {"text": "差", "stars": 1},
        {"tags": ["a", {"b": 2}], "text": "差", "ok": True},
    ]
    await _score(_write(tmp_path / "in.jsonl", rows), tmp_path / "out.csv")
    first, second, third = _read(tmp_path / "out.csv")
    assert list(first)[:4] == ["text", "stars", "tags", "ok"]
    assert (first["stars"], second["stars"], third["stars"]) == ("", "1", "")
    assert (third["tags"], third["ok"]) == ('["a", {"b": 2}]', "true")


async def test_members_that_come_back_are_as_they_were(tmp_path: Path) -> None:
    rows = [{"id": 12345678901234567890123, "text": "好\u2028", "名": {"x": [1.5e-7, None]}, "half": "\ud83d"}]
    (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    await _score(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (line,) = (tmp_path / "out.jsonl").read_bytes().split(b"\n")[:-1]
    written = json.loads(line)
    del written["sentiment"]
    assert written == rows[0]
    assert "名" in line.decode()


# Rows that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("in.csv", "id,review\n1,好\n", r"line 2: no text in column 'text'; the columns are 'id', 'review'"),
        ("in.csv", "text,id\n好,1\n差,2,3\n", r"line 3: more cells than columns"),
        ("in.jsonl", '{"text": "好"}\n5\n', "line 2: not a JSON object"),
    ],
)
async def test_a_file_that_cannot_be_read_is_told_before_the_work_begins(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    scorer = _Scorer()
    with pytest.raises(BadRow, match=reason):
        await _score(tmp_path / name, tmp_path / "out.jsonl", scorer)
    assert not scorer.asked
    assert _names(tmp_path) == {name}


async def test_a_later_row_without_a_text_has_an_error_of_its_own(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"text": "好"}, {"id": 7}, {"text": "差"}])
    await _score(source, tmp_path / "out.jsonl")
    assert ["error" in row for row in _read(tmp_path / "out.jsonl")] == [False, True, False]


@pytest.mark.parametrize("name", ["out.jsonl.gz", "absent/out.jsonl"])
async def test_an_output_that_cannot_be_written_is_told_at_once(tmp_path: Path, name: str) -> None:
    scorer = _Scorer()
    with pytest.raises(CannotProceed):
        await _score(_write(tmp_path / "in.jsonl", _rows(3)), tmp_path / name, scorer)
    assert not scorer.asked


# Resuming


@pytest.mark.parametrize("into", ["jsonl", "csv", "parquet"])
async def test_a_run_that_goes_on_writes_what_one_run_would_have(tmp_path: Path, into: Form) -> None:
    source = _write(tmp_path / "in.jsonl", _rows(2_000))
    output, expected = tmp_path / f"out.{into}", tmp_path / f"expected.{into}"
    await _score(source, expected)
    for most in (700, 0, 1, 900):
        with pytest.raises(CannotProceed, match="it fails"):
            await _score(source, output, _Scorer(most), resume=True)
        assert not output.exists()
    last = _Scorer()
    await _score(source, output, last, resume=True)
    assert len(last.asked) == 399
    assert _read(output) == _read(expected)


async def test_a_run_that_did_not_end_is_not_written_over(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", _rows(10))
    with pytest.raises(CannotProceed, match="it fails"):
        await _score(source, tmp_path / "out.jsonl", _Scorer(5))
    with pytest.raises(CannotProceed, match="--resume"):
        await _score(source, tmp_path / "out.jsonl")


async def test_a_run_that_failed_at_once_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", _rows(10))
    with pytest.raises(CannotProceed, match="it fails"):
        await _score(source, tmp_path / "out.jsonl", _Scorer(0))
    assert _names(tmp_path) == {"in.jsonl"}


async def test_there_need_not_be_anything_to_resume(tmp_path: Path) -> None:
    await _score(_write(tmp_path / "in.jsonl", _rows(10)), tmp_path / "out.jsonl", resume=True)
    assert len(_read(tmp_path / "out.jsonl")) == 10


async def test_a_file_that_has_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", _rows(10))
    with pytest.raises(CannotProceed, match="it fails"):
        await _score(source, tmp_path / "out.jsonl", _Scorer(5))
    _write(source, [{"text": "new"}, *_rows(10)])
    with pytest.raises(CannotProceed, match="does not begin with the 5 rows"):
        await _score(source, tmp_path / "out.jsonl", resume=True)


async def test_rows_may_have_been_added_to_a_file_meanwhile(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", _rows(10))
    with pytest.raises(CannotProceed, match="it fails"):
        await _score(source, tmp_path / "out.jsonl", _Scorer(5))
    _write(source, _rows(12))
    await _score(source, tmp_path / "out.jsonl", resume=True)
    assert [row["id"] for row in _read(tmp_path / "out.jsonl")] == list(range(12))


def _journal(output: Path, **changes: str) -> Journal:
    return Journal(output, {**_RUN, **changes}, resume=True)


def _lines(journal: Journal) -> list[int]:
    return [answer["line"] for answer in journal.answers()]


@settings(max_examples=30)
@given(saves=st.lists(st.integers(0, 5), max_size=4), lost=st.integers(0, 3), torn=st.binary(max_size=9))
def test_of_a_killed_run_exactly_what_was_saved_counts(
    tmp_path_factory: pytest.TempPathFactory, saves: list[int], lost: int, torn: bytes
) -> None:
    output = tmp_path_factory.mktemp("journal") / "out"
    for added in saves:
        journal = _journal(output)
        for _ in range(added):
            journal.add(b'{"line": %d}' % journal.rows, checksum=journal.rows)
        journal.save(now=True)
        for _ in range(lost):
            journal.add(b'{"line": -1}', checksum=0)
        journal._file.write(torn)  # noqa: SLF001 (killed in the middle of a line)
        journal._file.close()  # noqa: SLF001 (and without a chance to save)
    journal = _journal(output)
    assert journal.rows == sum(saves)
    assert journal.checksum == max(0, sum(saves) - 1)
    journal.close()
    assert _lines(journal) == list(range(sum(saves)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda output: (output / "out.part").write_bytes(b"{"), "has lost answers"),
        (lambda output: (output / "out.part").unlink(), "cannot be read"),
        (lambda output: (output / "out.part.json").write_bytes(b"{"), "cannot be read"),
        (lambda output: (output / "out.part.json").write_bytes(b"{}"), "cannot be read"),
    ],
)
def test_a_damaged_journal_is_told(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    journal = _journal(tmp_path / "out")
    journal.add(b'{"line": 0}', checksum=1)
    journal.close()
    damage(tmp_path)
    with pytest.raises(CannotProceed, match=reason):
        _journal(tmp_path / "out")


def test_answers_of_another_model_are_not_gone_on_with(tmp_path: Path) -> None:
    journal = _journal(tmp_path / "out")
    journal.add(b'{"line": 0}', checksum=1)
    journal.close()
    with pytest.raises(CannotProceed, match="another run \\(model 'm'\\)"):
        _journal(tmp_path / "out", model="n")


# Memory and summary


async def test_rows_are_read_as_answers_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    class Held(_Scorer):
        async def answers(self, chunks: AsyncIterator[Sequence[object]]) -> AsyncGenerator[list[bytes], None]:
            async for answers in super().answers(chunks):
                assert read - len(self.asked) <= 256
                yield answers

    everything = Source.rows

    def counted(self: Source, **options: Any) -> Iterator[Any]:
        nonlocal read
        if not options:
            return everything(self)
        read = 0
        return map(count, everything(self, **options))

    def count(row: Any) -> Any:
        nonlocal read
        read += 1
        return row

    monkeypatch.setattr(Source, "rows", counted)
    await _score(_write(tmp_path / "in.jsonl", _rows(3_000)), tmp_path / "out.jsonl", Held())
    assert read == 3_000


async def test_the_summary_tells_shares_and_what_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": text, "id": f"n{number}"} for number, text in enumerate(["好", "好", "差", "差", "差", ""])]
    source = Source(_write(tmp_path / "in.jsonl", rows), "jsonl", "text", "id")

    @asynccontextmanager
    async def opened() -> AsyncIterator[_Scorer]:
        yield _Scorer()

    await score(source, Output(tmp_path / "out.jsonl", "jsonl"), opened(), resume=False)
    said = capsys.readouterr().err
    assert "6 rows, 6 of them now" in said
    assert [line.split()[:3] for line in said.splitlines() if "█" in line] == [
        ["negative", "3", "60.0%"],
        ["positive", "2", "40.0%"],
    ]
    assert "3 not certain (60.0%)" in said
    assert "1 without an answer: 1 empty-text" in said
    assert "line 6 (n5): Nothing to read." in said


async def test_the_summary_of_a_run_that_goes_on_is_of_all_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "in.jsonl", [{"text": "好"}] * 6 + [{"text": "差"}] * 4)
    with pytest.raises(CannotProceed, match="it fails"):
        await _score(source, tmp_path / "out.jsonl", _Scorer(5))
    await _score(source, tmp_path / "out.jsonl", resume=True)
    said = capsys.readouterr().err
    assert "10 rows, 5 of them now" in said
    assert "60.0%" in said


def test_a_summary_without_answers_is_one_too() -> None:
    console = Console(file=io.StringIO())
    Tally().show(console)
    tally = Tally()
    tally.add(_answer(""), "line 1")
    tally.show(console)
