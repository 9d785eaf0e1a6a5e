import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from app.domain.rows import BadRow
from app.training.data import Example, MissingFile, Source, find, prepare, read_examples, read_texts, split
from tests.training.reviews import EMOTIONS, reviews, write_rows

LONG = "这家酒店的位置非常方便出门就是地铁站房间也很干净早餐的种类丰富前台服务热情下次出差还会再来住的"


STARS = {"1": "negative", "3": "neutral", "5": "positive"}


_SHOP_TEXTS = ["好", "差", "一般", "不知道"]
_SHOP = list(zip(_SHOP_TEXTS, [5, "1", 3.0, None], strict=True))


def example(text: str, label: str = "positive", source: str = "hotel") -> Example:
    return Example(text, label, source)


# Reading


def test_examples_are_read_cleaned_from_json_lines(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "hotel.jsonl",
        {"text": "很好！！！！！", "label": "positive", "category": "房间"},
        {"text": "差", "label": "negative"},
    )
    assert read_examples(file, Source("hotel.jsonl")) == [
        Example("很好!!!", "positive", "hotel", category="房间"),
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
    assert read_texts(tmp_path / name, Source(name)) == ["好"]


def test_a_source_names_the_column_of_the_text_and_the_label_of_all_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "news.jsonl", {"title": "今日天气", "label": "positive"}, {"title": "明日天气"})
    assert read_examples(file, Source("news.jsonl", text="title", label="neutral")) == [
        example("今日天气", "neutral", "news"),
        example("明日天气", "neutral", "news"),
    ]


@pytest.mark.parametrize("name", ["shop.csv", "shop.jsonl", "shop.parquet"])
def test_stars_become_labels_in_every_format(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    match file.suffix:
        case ".csv":
            file.write_text("review,stars\n好,5\n差,1\n一般,3\n不知道,\n", encoding="utf-8")
        case ".jsonl":
            write_rows(file, *({"review": text, "stars": stars} for text, stars in _SHOP))
        case _:
            parquet.write_table(pa.table({"review": _SHOP_TEXTS, "stars": [5, 1, 3.0, None]}), file)
    source = Source(name, text="review", label_column="stars", mapping=STARS)
    assert read_examples(file, source) == [
        example("好", "positive", "shop"),
        example("差", "negative", "shop"),
        example("一般", "neutral", "shop"),
    ]
    assert read_texts(file, source) == ["好", "差", "一般", "不知道"]


def test_stars_that_the_mapping_leaves_out_are_a_bad_row(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"text": "好", "stars": 4})
    with pytest.raises(BadRow, match=r"a\.jsonl, line 1: label '4' is none of 1, 3, 5, negative, neutral, positive"):
        read_examples(file, Source("a.jsonl", label_column="stars", mapping=STARS))


def test_labels_are_those_of_the_recipe(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"text": "好", "label": "good"})
    assert read_examples(file, Source("a.jsonl"), labels=("bad", "good")) == [example("好", "good", "a")]


def test_a_file_that_is_no_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(BadRow, match=r"a\.parquet, after row 0: "):
        read_examples(tmp_path / "a.parquet", Source("a.parquet"))


def test_emotions_are_read_beside_or_without_a_label(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "a.jsonl",
        {"text": "气死我了", "label": "negative", "emotion": "angry"},
        {"text": "想哭", "emotion": "sad"},
        {"text": "好", "label": "positive", "emotion": ""},
        {"text": "不知道", "label": None, "emotion": None},
    )
    assert read_examples(file, Source("a.jsonl"), emotions=EMOTIONS) == [
        Example("气死我了", "negative", "a", "angry"),
        Example("想哭", None, "a", "sad"),
        Example("好", "positive", "a"),
    ]
    assert [found.emotion for found in read_examples(file, Source("a.jsonl"))] == [None, None]


def test_an_unknown_emotion_is_told_with_file_and_line(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"text": "好", "emotion": "happy"}, {"text": "饿", "emotion": "hungry"})
    with pytest.raises(BadRow, match=r"a\.jsonl, line 2: emotion 'hungry' is none of angry, sad, calm, happy"):
        read_examples(file, Source("a.jsonl"), emotions=EMOTIONS)


def test_unlabelled_texts_are_read_cleaned_whatever_their_label(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"text": "好！", "label": "great"}, {"text": " "}, {"text": "差"})
    assert read_texts(file, Source("a.jsonl")) == ["好!", "差"]
    with pytest.raises(BadRow, match=r"a\.jsonl, line 1: no text in column 'body'"):
        read_texts(file, Source("a.jsonl", text="body"))


def test_rows_without_a_label_or_with_a_blank_text_are_left_out(tmp_path: Path) -> None:
    file = write_rows(
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


# Splitting


def test_both_parts_of_a_split_have_the_same_shares_of_label_and_emotion() -> None:
    examples = reviews()
    train, dev = split(examples, 0.2)
    assert len(dev) == 75
    assert Counter((each.label, each.emotion) for each in dev) == {
        ("negative", "angry"): 9,
        ("negative", "sad"): 16,
        ("neutral", "calm"): 25,
        ("positive", "happy"): 25,
    }
    assert Counter(train + dev) == Counter(examples)


def test_a_split_is_decided_by_its_seed() -> None:
    assert split(reviews(), 0.2, seed=1) == split(reviews(), 0.2, seed=1) != split(reviews(), 0.2, seed=2)


@pytest.mark.parametrize(("dev_share", "held_out"), [(0.1, 3), (0.04, 1)])
def test_labels_too_rare_to_stand_in_both_parts_are_split_anyhow(dev_share: float, held_out: int) -> None:
    examples = [example(f"好{number}") for number in range(20)] + [example("差", "negative"), example("行", "neutral")]
    train, dev = split(examples, dev_share)
    assert len(dev) == held_out
    assert Counter(train + dev) == Counter(examples)


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


def test_a_text_with_contradicting_emotions_is_left_out_altogether() -> None:
    sad, angry = (Example("唉", None, "posts", emotion) for emotion in ("sad", "angry"))
    kept, report = prepare([sad, angry, example("差", "negative")], [])
    assert kept == [example("差", "negative")]
    assert (report.duplicates, report.conflicting, report.leaked) == (1, 1, 0)


def test_an_example_without_label_contradicts_none() -> None:
    kept, report = prepare([example("好"), Example("好!", None, "hotel", "happy")], [])
    assert kept == [example("好")]
    assert (report.duplicates, report.conflicting) == (1, 0)


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


# Near-duplicates

_EDITED = LONG[:20] + "稍微" + LONG[20:]


def test_of_nearly_equal_texts_with_the_same_labels_the_first_is_kept() -> None:
    texts = [example(LONG), example(_EDITED), example("好" + LONG), example("房间里有怪味而且隔壁整夜都很吵")]
    kept, report = prepare(texts, [], near_duplicates=0.7)
    assert kept == [texts[0], texts[3]]
    assert (report.near_duplicates, report.duplicates) == (2, 0)


def test_without_a_similarity_nearly_equal_texts_are_kept() -> None:
    kept, report = prepare([example(LONG), example(_EDITED)], [])
    assert len(kept) == 2
    assert report.near_duplicates == 0


@pytest.mark.parametrize("other", [example(_EDITED, "negative"), Example(_EDITED, "positive", "hotel", "happy")])
def test_nearly_equal_texts_of_another_label_or_emotion_are_kept(other: Example) -> None:
    assert prepare([example(LONG), other], [], near_duplicates=0.7)[0] == [example(LONG), other]


def test_short_texts_have_no_near_duplicates() -> None:
    texts = [example("房间很干净服务也很好"), example("房间很干净服务也很好呀")]
    assert prepare(texts, [], near_duplicates=0.5)[0] == texts


def test_texts_less_alike_than_asked_for_are_kept() -> None:
    assert (
        len(prepare([example(LONG), example(LONG[:25] + "隔壁装修从早吵到晚没法休息")], [], near_duplicates=0.7)[0])
        == 2
    )
