import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from app.domain.labels import Label
from app.domain.rows import BadRow
from app.training.data import Example, MissingFile, Source, find, prepare, read_examples, read_texts

LONG = "这家酒店的位置非常方便出门就是地铁站房间也很干净早餐的种类丰富前台服务热情下次出差还会再来住的"


def jsonl(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def example(text: str, label: Label = "positive", source: str = "hotel") -> Example:
    return Example(text, label, source)


# Reading


def test_examples_are_read_cleaned_from_json_lines(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "hotel.jsonl",
        {"text": "很好！！！！！", "label": "positive", "category": "房间"},
        {"text": "差", "label": "negative"},
    )
    assert read_examples(file, Source("hotel.jsonl")) == [
        Example("很好!!!", "positive", "hotel"),
        Example("差", "negative", "hotel"),
    ]


def test_examples_are_read_from_csv(tmp_path: Path) -> None:
    file = tmp_path / "hotel.csv"
    file.write_text('label,text\npositive,"好,\n很好"\nneutral,一般\n', encoding="utf-8")
    assert read_examples(file, Source("hotel.csv")) == [
        Example("好, 很好", "positive", "hotel"),
        Example("一般", "neutral", "hotel"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl.gz", '{"text": "好", "label": "positive"}\n'), ("a.csv.gz", "text,label\n好,positive\n")],
)
def test_gzipped_files_are_read_as_if_they_were_not(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert read_examples(tmp_path / name, Source(name)) == [Example("好", "positive", "a")]
    assert read_texts(tmp_path / name) == ["好"]


def test_a_source_names_the_column_of_the_text_and_the_label_of_all_rows(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "news.jsonl", {"title": "今日天气", "label": "positive"}, {"title": "明日天气"})
    assert read_examples(file, Source("news.jsonl", text="title", label="neutral")) == [
        example("今日天气", "neutral", "news"),
        example("明日天气", "neutral", "news"),
    ]


def test_rows_without_a_label_or_with_a_blank_text_are_left_out(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "a.jsonl",
        {"text": "不知道", "label": None},
        {"text": "没有"},
        {"text": " \u200b", "label": "positive"},
        {"text": "好", "label": "positive"},
    )
    assert [found.text for found in read_examples(file, Source("a.jsonl"))] == ["好"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ('["好"]', "not a JSON object"),
        ('{"label": "positive"}', "no text in column 'text'"),
        ('{"text": 5, "label": "positive"}', "no text in column 'text'"),
        ('{"text": "好", "label": "great"}', "label 'great' is none of negative, neutral, positive"),
        ('{"text": "好", "label": ["positive"]}', "is none of"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(tmp_path: Path, row: str, complaint: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "好", "label": "positive"}}\n{row}\n', encoding="utf-8")
    with pytest.raises(BadRow, match=r"a\.jsonl, line 2: ") as refusal:
        read_examples(file, Source("a.jsonl"))
    assert complaint in str(refusal.value)


def test_a_bad_row_of_a_csv_is_told_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\n好,positive\n差,bad\n", encoding="utf-8")
    with pytest.raises(BadRow, match=r"a\.csv, line 3: label 'bad'"):
        read_examples(file, Source("a.csv"))


def test_the_first_directory_that_has_a_file_wins(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for directory in (one, two, three):
        directory.mkdir()
    for directory in (two, three):
        (directory / "a.csv").touch()
    assert find("a.csv", [one, two, three]) == two / "a.csv"
    with pytest.raises(MissingFile, match=r"one.*b\.csv or .*two.*b\.csv"):
        find("b.csv", [one, two])


@pytest.mark.parametrize(("file", "name"), [("a.csv", "a"), ("a.v2.jsonl.gz", "a.v2"), ("a.train.jsonl", "a.train")])
def test_a_source_is_named_after_its_file(file: str, name: str) -> None:
    assert Source(file).name == name


# Preparing


def test_a_repeated_text_is_kept_once_whatever_its_punctuation_and_case() -> None:
    first = example("Very good，好")
    kept, report = prepare([first, example("very GOOD好!!!"), first, example("差", "negative")], [])
    assert kept == [first, example("差", "negative")]
    assert (report.duplicates, report.conflicting, report.leaked) == (2, 0, 0)


def test_a_text_with_contradicting_labels_is_left_out_altogether() -> None:
    kept, report = prepare([example("好", "positive"), example("好。", "negative"), example("差", "negative")], [])
    assert kept == [example("差", "negative")]
    assert (report.duplicates, report.conflicting, report.leaked) == (1, 1, 0)


def test_a_text_without_letters_is_known_by_its_signs() -> None:
    kept, _ = prepare([example("!!!"), example("???", "negative"), example("!!!")], [])
    assert kept == [example("!!!"), example("???", "negative")]


@pytest.mark.parametrize(
    "held_out",
    [
        LONG,
        LONG + "。",
        LONG[:30] + "但是后来换了经理就完全不行了大家千万别来",
        "补充一下我昨天写的评价今天又想了想还是觉得" + LONG[-25:],
    ],
)
def test_a_text_that_the_held_out_texts_know_is_a_leak(held_out: str) -> None:
    kept, report = prepare([example(LONG), example("好")], [example(held_out, "neutral")])
    assert kept == [example("好")]
    assert (report.leaked, report.duplicates) == (1, 0)


@pytest.mark.parametrize(
    "held_out",
    [
        LONG[:19] + "但是后来换了经理就完全不行了大家千万别来真的别来了" + LONG[-19:],
        LONG[:20],
        LONG[-20:] + "这是另一条评价的开头部分和上面那条完全没有关系",
    ],
)
def test_a_text_that_only_resembles_a_held_out_text_is_kept(held_out: str) -> None:
    kept, report = prepare([example(LONG)], [example(held_out)])
    assert kept == [example(LONG)]
    assert report.leaked == 0


def test_short_texts_leak_only_as_a_whole() -> None:
    assert len(LONG[:40]) == 40
    kept, report = prepare([example(LONG[:40]), example(LONG[:10])], [example(LONG), example(LONG[:10] + "!")])
    assert kept == [example(LONG[:40])]
    assert report.leaked == 1


def test_every_copy_of_a_leak_is_counted_as_a_leak() -> None:
    _, report = prepare([example("好"), example("好"), example("好", "negative")], [example("好")])
    assert (report.leaked, report.duplicates, report.conflicting) == (3, 0, 0)


def test_the_report_counts_what_is_kept_by_source_and_label() -> None:
    _, report = prepare(
        [example("好", source="hotel"), example("很好", source="hotel"), example("差", "negative", source="food")], []
    )
    assert report.kept == Counter({("hotel", "positive"): 2, ("food", "negative"): 1})
