"""Measure a bundle as it is served: the same cleaning, tokenizer, engine and provider."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import track
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from app.inference.bundle import Bundle, open_bundle
from app.inference.engine import Engine
from app.inference.processor import usable_threads
from app.inference.session import Placement, Precision, Provider, open_model
from app.inference.tokenizer import TokenIds, Tokenizer
from app.training.data import Example, Source, read_examples

_BATCH_TOKENS = 2_048
_ALONE = 500  # texts that are also run alone, to see whether the batch matters


class Figures(BaseModel):
    """One file's figures. Shares lie between 0 and 1."""

    texts: int
    accuracy: float
    macro_f1: float
    # For files without neutral texts: neutral dropped, the other two compared.
    two_way_accuracy: float | None
    neutral_answers: float
    truncated: int  # texts longer than the window
    truncated_accuracy: float | None
    confusion: Annotated[list[list[int]], Field(description="Rows: true labels, columns: answers, in label order")]


class Evaluation(BaseModel):
    """All figures of one run."""

    model: str
    provider: str
    precision: str
    max_tokens: int
    head_tokens: int
    date: str
    labels: tuple[str, ...]
    files: dict[str, Figures]
    alone_texts: int
    alone_flips: int  # labels that differ between a text alone and the same text in a batch
    alone_largest_difference: float  # of a probability


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
    """
    bundle = open_bundle(directory)
    manifest = bundle.manifest
    tokenizer = Tokenizer(
        bundle.tokenizer_file,
        max_tokens=max_tokens or manifest.max_tokens,
        head_tokens=head_tokens or manifest.head_tokens,
    )
    engine, placement = _open_engine(bundle, provider, precision)
    figures: dict[str, Figures] = {}
    ids: list[TokenIds] = []
    answers: list[NDArray[np.float64]] = []
    for file in files:
        source = Source(file.name)
        examples = read_examples(file, source)
        texts = tokenizer.encode([example.text for example in examples])
        found = _run_sorted(engine, [text.ids for text in texts], source.name)
        truncated = np.array([text.truncated for text in texts])
        figures[source.name] = _figures(examples, found, manifest.labels, truncated)
        ids += [text.ids for text in texts]
        answers.append(found)
    together = np.concatenate(answers)
    chosen = np.random.default_rng(0).permutation(len(ids))[:_ALONE]
    alone = np.array([engine.run_now([ids[index]])[0] for index in chosen])
    return Evaluation(
        model=f"{manifest.name}/{manifest.version}",
        provider=placement.provider,
        precision=placement.precision,
        max_tokens=max_tokens or manifest.max_tokens,
        head_tokens=head_tokens or manifest.head_tokens,
        date=datetime.now(UTC).date().isoformat(),
        labels=manifest.labels,
        files=figures,
        alone_texts=len(chosen),
        alone_flips=int((alone.argmax(axis=1) != together[chosen].argmax(axis=1)).sum()),
        alone_largest_difference=round(float(np.abs(alone - together[chosen]).max()), 6),
    )


def render(evaluation: Evaluation) -> str:
    """Return the figures as a Markdown table."""
    run = f"{evaluation.model} on {evaluation.provider} {evaluation.precision}, {evaluation.date}"
    lines = [
        f"{run}, window {evaluation.max_tokens} (head {evaluation.head_tokens})",
        "",
        "| file | texts | accuracy | macro-F1 | two-way accuracy | answered neutral | truncated | their accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in evaluation.files.items():
        lines.append(
            f"| {name} | {row.texts} | {row.accuracy:.2%} | {row.macro_f1:.3f} | {_share(row.two_way_accuracy)} | "
            f"{row.neutral_answers:.1%} | {row.truncated} | {_share(row.truncated_accuracy)} |"
        )
    lines += [
        "",
        f"Alone against in a batch, {evaluation.alone_texts} texts: {evaluation.alone_flips} labels differ.",
        f"The largest difference of a probability is {evaluation.alone_largest_difference:.4f}.",
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _open_engine(
    bundle: Bundle, provider: Provider | Literal["auto"], precision: Precision | Literal["auto"]
) -> tuple[Engine, Placement]:
    model = open_model(bundle.model_file, provider=provider, precision=precision, threads=usable_threads())
    return Engine(
        model, pad_id=bundle.manifest.pad_id, labels=len(bundle.manifest.labels), longest=bundle.manifest.max_tokens
    ), model.placement


def _run_sorted(engine: Engine, ids: Sequence[TokenIds], title: str) -> NDArray[np.float64]:
    """Return probabilities (N, L) in the order of `ids`, computed in batches of similar lengths."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    batches: list[list[int]] = [[]]
    for index in order:
        if batches[-1] and len(ids[index]) * (len(batches[-1]) + 1) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    answers: dict[int, tuple[float, ...]] = {}
    for batch in track(batches, description=title, console=Console(stderr=True)):
        answers.update(zip(batch, engine.run_now([ids[index] for index in batch]), strict=True))
    return np.array([answers[index] for index in range(len(ids))])


def _figures(
    examples: Sequence[Example], answers: NDArray[np.float64], labels: Sequence[str], truncated: NDArray[np.bool_]
) -> Figures:
    expected = np.array([labels.index(example.label) for example in examples])
    given = answers.argmax(axis=1)
    neutral = labels.index("neutral")
    two_way = None
    if neutral not in expected:
        polar = answers.copy()
        polar[:, neutral] = -1
        two_way = round(float(accuracy_score(expected, polar.argmax(axis=1))), 5)
    return Figures(
        texts=len(examples),
        accuracy=round(float(accuracy_score(expected, given)), 5),
        macro_f1=round(float(f1_score(expected, given, average="macro", labels=np.unique(expected))), 5),
        two_way_accuracy=two_way,
        neutral_answers=round(float((given == neutral).mean()), 5),
        truncated=int(truncated.sum()),
        truncated_accuracy=(
            round(float(accuracy_score(expected[truncated], given[truncated])), 5) if truncated.any() else None
        ),
        confusion=confusion_matrix(expected, given, labels=range(len(labels))).tolist(),
    )
