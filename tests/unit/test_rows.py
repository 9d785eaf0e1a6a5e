import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.domain.rows import BadRow, read_rows


def _written(file: Path, content: str, encoding: str = "utf-8") -> Path:
    data = content.encode(encoding)
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.jsonl.gz"])
def test_what_is_not_called_otherwise_is_json_lines(tmp_path: Path, name: str) -> None:
    file = _written(tmp_path / name, '{"text": "好"}\r\n{"text": "差", "stars": 1}\n')
    assert list(read_rows(file)) == [(1, {"text": "好"}), (2, {"text": "差", "stars": 1})]


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.csv.gz"])
def test_a_row_of_a_csv_is_numbered_by_the_line_it_ends_on(tmp_path: Path, name: str) -> None:
    file = _written(tmp_path / name, 'text,label\r\n"两\n行",neutral\r\n好,positive\r\n')
    assert list(read_rows(file)) == [
        (3, {"text": "两\n行", "label": "neutral"}),
        (4, {"text": "好", "label": "positive"}),
    ]


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\n好\n"), ("a.jsonl", '{"text": "好"}\n')])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, name: str, content: str) -> None:
    file = _written(tmp_path / name, content, "utf-8-sig")
    assert [row for _, row in read_rows(file)] == [{"text": "好"}]


def test_rows_before_a_bad_one_are_read(tmp_path: Path) -> None:
    rows = read_rows(_written(tmp_path / "a.jsonl", '{"text": "好"}\n[]\n'))
    assert next(rows) == (1, {"text": "好"})
    with pytest.raises(BadRow, match=r"a\.jsonl, line 2: not a JSON object"):
        next(rows)


def test_a_field_that_no_csv_reader_takes_is_told_with_its_line(tmp_path: Path) -> None:
    file = _written(tmp_path / "a.csv", f"text\n好\n{'很' * 200_000}\n")
    with pytest.raises(BadRow, match=r"a\.csv, line 3: field larger than"):
        list(read_rows(file))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz"])
def test_another_encoding_is_told_with_the_way_out(tmp_path: Path, name: str) -> None:
    file = _written(tmp_path / name, '{"text": "服务很好"}\n', "gb18030")
    with pytest.raises(BadRow, match=r"not in UTF-8; convert it, as with iconv -f GB18030 -t UTF-8"):
        list(read_rows(file))


@pytest.mark.parametrize("damage", [slice(5, None), slice(None, -9)])
def test_a_damaged_gzip_file_is_told(tmp_path: Path, damage: slice) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n')[damage])
    with pytest.raises(BadRow, match=r"a\.jsonl\.gz is no whole gzip file"):
        list(read_rows(file))


def test_blank_lines_of_json_lines_are_passed_over_and_count(tmp_path: Path) -> None:
    file = _written(tmp_path / "a.jsonl", '\n{"text": "好"}\n \n{"text": "差"}\n\n')
    assert list(read_rows(file)) == [(2, {"text": "好"}), (4, {"text": "差"})]


def test_a_format_that_is_said_counts_for_more_than_the_name(tmp_path: Path) -> None:
    file = _written(tmp_path / "a.txt", "text\n好\n")
    assert list(read_rows(file, form="csv")) == [(2, {"text": "好"})]


def test_of_a_wide_table_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["好"], "wide": ["x"]}), file)
    assert list(read_rows(file, columns=["text"])) == [(1, {"text": "好"})]
