"""Figures: by hand from made-up answers, and of a real bundle, as JSON, Markdown and HTML."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from app.domain.labels import LABELS, Heads
from app.domain.rows import BadRow
from app.training.data import Example
from app.training.evaluate import Evaluation, FileFigures, SameName, evaluate_bundle, file_figures
from app.training.report import render_html, render_markdown
from tests.training.reviews import EMOTIONS, reviews, write_reviews, write_rows

_SURE = {"negative": (0.7, 0.2, 0.1), "neutral": (0.1, 0.8, 0.1), "positive": (0.1, 0.3, 0.6)}
_UNFRIENDLY = '<b>"a"&b'


def _figures(*rows: tuple[str | None, str, str | None], truncated: int = 0) -> FileFigures:
    """Return the figures of texts given as label, answer and category, the first `truncated` of them too long."""
    return file_figures(
        [Example("好", label, "made", category=category) for label, _, category in rows],
        np.array([_SURE[answer] for _, answer, _ in rows]),
        Heads(LABELS),
        truncated=np.arange(len(rows)) < truncated,
    )


# By hand


def test_labels_are_counted_by_what_is_true_and_what_was_answered() -> None:
    figures = _figures(
        ("negative", "negative", None),
        ("negative", "positive", None),
        ("neutral", "neutral", None),
        ("positive", "positive", None),
        ("positive", "positive", None),
        (None, "negative", None),
    ).polarity
    assert figures.texts == 5
    assert figures.confusion == [[1, 0, 1], [0, 1, 0], [0, 0, 2]]
    assert figures.accuracy == 0.8
    assert figures.labels["positive"].model_dump() == {"texts": 2, "precision": 0.66667, "recall": 1.0, "f1": 0.8}
    assert figures.macro_f1 == pytest.approx((2 / 3 + 1 + 0.8) / 3, abs=1e-5)
    # answered in bins of 0.6, 0.7 and 0.8
    assert figures.reliability == [(3, 0.6, 0.6667), (1, 0.7, 1.0), (1, 0.8, 1.0)]
    assert figures.calibration_error == pytest.approx((3 * (2 / 3 - 0.6) + 0.3 + 0.2) / 5, abs=1e-5)


def test_labels_that_a_file_lacks_do_not_lower_its_macro_f1() -> None:
    figures = _figures(("negative", "negative", None), ("positive", "positive", None)).polarity
    assert figures.macro_f1 == 1
    assert figures.labels["neutral"].texts == 0


def test_without_neutral_texts_the_other_two_labels_are_compared() -> None:
    rows = [("negative", "neutral", None), ("positive", "neutral", None), ("positive", "positive", None)]
    figures = _figures(*rows)
    # of 0.1, 0.8, 0.1 the first is taken
    assert figures.polarity.accuracy == pytest.approx(1 / 3, abs=1e-5)
    assert figures.two_way_accuracy == pytest.approx(2 / 3, abs=1e-5)
    assert figures.neutral_answers == pytest.approx(2 / 3, abs=1e-5)
    assert _figures(*rows, ("neutral", "neutral", None)).two_way_accuracy is None


def test_texts_cut_short_have_an_accuracy_of_their_own() -> None:
    rows = [("neutral", "positive", None), ("positive", "positive", None), ("neutral", "neutral", None)]
    assert (_figures(*rows, truncated=2).truncated, _figures(*rows, truncated=2).truncated_accuracy) == (2, 0.5)
    assert (_figures(*rows).truncated, _figures(*rows).truncated_accuracy) == (0, None)


def test_categories_have_an_accuracy_each() -> None:
    rows = [("neutral", "neutral", "手机"), ("neutral", "positive", "酒店"), ("neutral", "neutral", "酒店")]
    assert _figures(*rows, ("neutral", "neutral", None)).categories == {"手机": (1, 1.0), "酒店": (2, 0.5)}


def test_emotions_are_judged_where_they_are_known() -> None:
    answers = np.array([[*_SURE["negative"], *emotions] for emotions in np.eye(4)[[0, 0, 1]]])
    felt = [Example("好", "negative", "made", emotion) for emotion in ("angry", "sad", None)]
    figures = file_figures(felt, answers, Heads(LABELS, EMOTIONS), truncated=np.zeros(3, bool)).emotion
    assert figures is not None
    assert (figures.texts, figures.accuracy) == (2, 0.5)
    assert figures.confusion == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


# A bundle


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One file with all labels and emotions; one without neutral texts, emotions or a harmless name."""
    directory = tmp_path_factory.mktemp("files")
    polar = [each for each in reviews("polar") if each.label != "neutral"][::9]
    return [
        write_reviews(directory / "test.jsonl", reviews("test")[2::7]),
        write_rows(
            directory / f"{_UNFRIENDLY}.jsonl",
            *({"text": each.text, "label": each.label, "category": "<i>"} for each in polar),
        ),
    ]


@pytest.fixture(scope="module")
def evaluation(bundle: Path, files: list[Path]) -> Evaluation:
    return evaluate_bundle(bundle, files)


def test_a_bundle_is_measured_as_it_is_served(evaluation: Evaluation) -> None:
    assert evaluation.model == "tiny/0.0.1"
    assert evaluation.files.keys() == {"test", _UNFRIENDLY}
    test = evaluation.files["test"]
    assert (test.polarity.texts, test.two_way_accuracy) == (54, None)
    assert test.polarity.accuracy > 0.9
    assert test.emotion is not None
    assert test.emotion.accuracy > 0.9
    assert evaluation.files[_UNFRIENDLY].emotion is None
    assert (evaluation.alone.texts, evaluation.alone.flips) == (54 + 28, 0)
    assert (evaluation.reference.texts, evaluation.reference.flips) == (54 + 28, 0)
    assert evaluation.speed.batched_texts_per_s > 0


def test_another_window_can_be_tried(bundle: Path, files: list[Path]) -> None:
    narrow = evaluate_bundle(bundle, files[:1], provider="cpu", precision="fp32", max_tokens=8, head_tokens=4)
    assert (narrow.provider, narrow.precision, narrow.max_tokens, narrow.head_tokens) == ("cpu", "fp32", 8, 4)
    assert narrow.files["test"].truncated == 54
    assert narrow.reference.largest_difference == pytest.approx(0, abs=1e-5)


def test_a_file_without_labels_is_refused(bundle: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"text": "好", "emotion": "happy"})
    with pytest.raises(BadRow, match=r"a\.jsonl: no text with a label"):
        evaluate_bundle(bundle, [file])


def test_two_files_of_one_name_are_refused(bundle: Path, files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / f"{files[0].stem}.csv"
    other.write_text("text,label\n好,positive\n", encoding="utf-8")
    with pytest.raises(SameName, match=other.stem):
        evaluate_bundle(bundle, [files[0], other])


def test_figures_survive_json(evaluation: Evaluation) -> None:
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_markdown_has_a_row_for_each_file_and_head(evaluation: Evaluation) -> None:
    rows = [line for line in render_markdown(evaluation).splitlines() if line.startswith("| ")]
    starts = [line.split(" | ")[:2] for line in rows]
    assert starts == [
        ["| file", "texts"],
        ["| ---", "---"],
        ["| test", "54"],
        [f"| {_UNFRIENDLY}", "28"],
        ["| emotions of", "texts"],
        ["| ---", "---"],
        ["| test", "54"],
    ]
    tables = [rows[:4], rows[4:]]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_markdown_compares_with_baselines_where_there_are_some(evaluation: Evaluation) -> None:
    judged = evaluation.files["test"].model_copy(update={"baselines": {"snownlp": 0.5}})
    text = render_markdown(evaluation.model_copy(update={"files": {**evaluation.files, "test": judged}}))
    assert (
        f"| file | this model | snownlp |\n| --- | --- | --- |\n| test | {judged.polarity.accuracy:.2%} | 50.00% |"
        in text
    )


class _Page(HTMLParser):
    """What a browser would find in a page: tags, what it would fetch, and the texts of headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [
            str(value) for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}
        ]
        self.references += [str(value) for _, value in attrs if value and "url(" in value and "url(#" not in value]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in {"h2", "td"}:
            self.headings.append(data.strip())
        if self.tags and self.tags[-1] == "style":
            self.references += [data] if "url(" in data.replace("url(#", "") or "@import" in data else []


def test_the_page_needs_nothing_from_elsewhere(evaluation: Evaluation) -> None:
    page = _Page(render_html(evaluation))
    assert page.references
    assert [reference for reference in page.references if not reference.startswith(("#", "data:image/png;"))] == []
    assert not {"link", "script", "img", "iframe", "object", "embed"}.intersection(page.tags)


def test_the_page_has_two_pictures_for_each_head_of_each_file(evaluation: Evaluation) -> None:
    tags = _Page(render_html(evaluation)).tags
    assert tags.count("svg") == tags.count("figure") == 2 * 3
    assert tags.count("h2") == 2


def test_names_of_files_and_categories_are_no_markup(evaluation: Evaluation) -> None:
    page = _Page(render_html(evaluation))
    assert _UNFRIENDLY in page.headings
    assert "<i>" in page.headings
    assert not {"b", "i"}.intersection(page.tags)
