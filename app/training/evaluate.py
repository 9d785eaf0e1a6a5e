"""Measure a bundle as it is served: the same cleaning, tokenizer, engine and provider."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from app.domain.errors import CannotProceed
from app.domain.labels import Heads
from app.domain.rows import BadRow
from app.inference.session import Precision, Provider
from app.inference.tokenizer import TokenIds
from app.training.calibration import calibration_error, reliability
from app.training.data import Example, Source, read_examples
from app.training.serving import Served, open_served

_ALONE = 3_000  # texts that are also run alone, to see whether the batch matters
_REFERENCE = 1_000  # texts that are also run in full precision


class SameName(CannotProceed):
    """Two evaluated files have the same name."""


class LabelFigures(BaseModel):
    """One label of one file."""

    texts: int
    precision: float
    recall: float
    f1: float


class HeadFigures(BaseModel):
    """How well one head does on the texts of a file that are labelled for it. Shares lie between 0 and 1."""

    texts: int
    accuracy: float
    macro_f1: Annotated[float, Field(description="Mean over the labels that the file has")]
    calibration_error: float
    labels: dict[str, LabelFigures]
    confusion: Annotated[list[list[int]], Field(description="Rows: true labels, columns: answers, in label order")]
    reliability: Annotated[list[tuple[int, float, float]], Field(description="Texts, mean confidence, accuracy by bin")]


class FileFigures(BaseModel):
    """One file's figures."""

    polarity: HeadFigures
    emotion: HeadFigures | None
    # For files without neutral texts: neutral dropped, the other two compared.
    two_way_accuracy: float | None
    neutral_answers: float
    truncated: int  # texts longer than the window
    truncated_accuracy: float | None
    categories: dict[str, tuple[int, float]]  # texts and accuracy (two-way where there is one)
    baselines: dict[str, float] = {}  # their accuracy, two-way where there is one


class Comparison(BaseModel):
    """The same texts answered twice."""

    texts: int
    flips: int  # labels that differ
    largest_difference: float  # of a probability


class Speed(BaseModel):
    """Of the engine, without a server."""

    alone_p50_ms: float
    alone_p99_ms: float
    batched_texts_per_s: float


class Evaluation(BaseModel):
    """All figures of one run."""

    model: str
    provider: str
    precision: str
    max_tokens: int
    head_tokens: int
    date: str
    labels: tuple[str, ...]
    emotions: tuple[str, ...]
    files: dict[str, FileFigures]
    alone: Comparison  # each text alone against the same text in a batch
    reference: Comparison  # as served against the CPU provider in full precision
    speed: Speed


def evaluate_bundle(
    directory: Path,
    files: Sequence[Path],
    *,
    provider: Provider | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    head_tokens: int | None = None,
) -> Evaluation:
    """Return the figures of the bundle in `directory` on labelled `files`.

    Raises:
        StartupError: the bundle or the provider is not usable.
        BadRow: a file has a row that cannot be used.
        SameName: two files would have their figures under one name.
    """
    names = [Source(file.name).name for file in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SameName(f"more than one file is called {', '.join(sorted(twice))}: figures are told by name")
    served = open_served(
        directory, provider=provider, precision=precision, max_tokens=max_tokens, head_tokens=head_tokens
    )
    manifest = served.bundle.manifest
    figures: dict[str, FileFigures] = {}
    ids: list[TokenIds] = []
    answers: list[NDArray[np.float64]] = []
    spent_s = 0.0
    for file in files:
        source = Source(file.name)
        examples = read_examples(file, source, labels=manifest.labels, emotions=manifest.emotions)
        if not any(example.label for example in examples):
            raise BadRow(f"{file}: no text with a label")
        texts = served.tokenizer.encode([example.text for example in examples])
        started = time.perf_counter()
        found = served.answer_tokens([text.ids for text in texts], title=source.name)
        spent_s += time.perf_counter() - started
        figures[source.name] = file_figures(
            examples, found, manifest.heads, truncated=np.array([text.truncated for text in texts])
        )
        ids += [text.ids for text in texts]
        answers.append(found)
    together = np.concatenate(answers)
    chosen = np.random.default_rng(0).permutation(len(ids))
    alone, latencies_ms = _one_by_one(served, [ids[index] for index in chosen[:_ALONE]])
    full = open_served(directory, provider="cpu", precision="fp32", max_tokens=max_tokens, head_tokens=head_tokens)
    reference = full.answer_tokens([ids[index] for index in chosen[:_REFERENCE]], title="full precision")
    polarities = len(manifest.labels)
    return Evaluation(
        model=f"{manifest.name}/{manifest.version}",
        provider=served.placement.provider,
        precision=served.placement.precision,
        max_tokens=max_tokens or manifest.max_tokens,
        head_tokens=head_tokens or manifest.head_tokens,
        date=datetime.now(UTC).date().isoformat(),
        labels=manifest.labels,
        emotions=manifest.emotions,
        files=figures,
        alone=_compare(alone, together[chosen[:_ALONE]], polarities),
        reference=_compare(reference, together[chosen[:_REFERENCE]], polarities),
        speed=Speed(
            alone_p50_ms=round(float(np.percentile(latencies_ms, 50)), 2),
            alone_p99_ms=round(float(np.percentile(latencies_ms, 99)), 2),
            batched_texts_per_s=round(len(ids) / spent_s, 1),
        ),
    )


def file_figures(
    examples: Sequence[Example], answers: NDArray[np.float64], heads: Heads, *, truncated: NDArray[np.bool_]
) -> FileFigures:
    """Return the figures of one file from the answers (N, columns) to its examples."""
    known = np.array([example.label is not None for example in examples])
    expected = np.array([heads.labels.index(example.label) if example.label else -1 for example in examples])
    polarity = answers[:, : len(heads.labels)]
    right = polarity.argmax(axis=1) == expected
    two_way = None
    if "neutral" in heads.labels and not any(example.label == "neutral" for example in examples):
        polar = polarity.copy()
        polar[:, heads.labels.index("neutral")] = -1
        right = polar.argmax(axis=1) == expected
        two_way = round(float(right[known].mean()), 5)
    emotion = None
    if heads.emotions and any(example.emotion for example in examples):
        felt = np.array([example.emotion is not None for example in examples])
        emotion = _head_figures(
            answers[felt, len(heads.labels) :],
            np.array([heads.emotions.index(example.emotion) for example in examples if example.emotion]),
            heads.emotions,
        )
    categories: dict[str, list[bool]] = {}
    for example, answered_right in zip(examples, right, strict=True):
        if example.category and example.label:
            categories.setdefault(example.category, []).append(bool(answered_right))
    neutral = polarity.argmax(axis=1) == heads.labels.index("neutral") if "neutral" in heads.labels else np.zeros(1)
    cut = truncated & known
    return FileFigures(
        polarity=_head_figures(polarity[known], expected[known], heads.labels),
        emotion=emotion,
        two_way_accuracy=two_way,
        neutral_answers=round(float(neutral.mean()), 5),
        truncated=int(truncated.sum()),
        truncated_accuracy=round(float(right[cut].mean()), 5) if cut.any() else None,
        categories={name: (len(each), round(sum(each) / len(each), 5)) for name, each in sorted(categories.items())},
    )


def _head_figures(
    probabilities: NDArray[np.float64], expected: NDArray[np.int64], labels: Sequence[str]
) -> HeadFigures:
    given = probabilities.argmax(axis=1)
    indexes = range(len(labels))
    report = classification_report(
        expected, given, labels=indexes, target_names=labels, output_dict=True, zero_division=0.0
    )
    return HeadFigures(
        texts=len(expected),
        accuracy=round(float(accuracy_score(expected, given)), 5),
        macro_f1=round(float(f1_score(expected, given, average="macro", labels=np.unique(expected))), 5),
        calibration_error=round(calibration_error(probabilities, expected), 5),
        labels={
            label: LabelFigures(
                texts=int(report[label]["support"]),
                precision=round(report[label]["precision"], 5),
                recall=round(report[label]["recall"], 5),
                f1=round(report[label]["f1-score"], 5),
            )
            for label in labels
        },
        confusion=confusion_matrix(expected, given, labels=indexes).tolist(),
        reliability=[
            (each.count, round(each.confidence, 4), round(each.accuracy, 4))
            for each in reliability(probabilities, expected)
        ],
    )


def _one_by_one(served: Served, ids: Sequence[TokenIds]) -> tuple[NDArray[np.float64], list[float]]:
    """Return answers and latencies in milliseconds."""
    answers, latencies_ms = [], []
    for text in ids:
        started = time.perf_counter()
        answers.append(served.engine.run_now([text])[0])
        latencies_ms.append((time.perf_counter() - started) * 1000)
    return np.array(answers), latencies_ms


def _compare(one: NDArray[np.float64], other: NDArray[np.float64], polarities: int) -> Comparison:
    labels = [answers[:, :polarities].argmax(axis=1) for answers in (one, other)]
    return Comparison(
        texts=len(one),
        flips=int((labels[0] != labels[1]).sum()),
        largest_difference=round(float(np.abs(one - other).max()), 6),
    )
