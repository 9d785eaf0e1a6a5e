"""An evaluation, as Markdown and as one HTML page that needs no other file."""

from collections.abc import Sequence
from io import StringIO
from typing import Final

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from app.training.evaluate import Comparison, Evaluation, FileFigures, HeadFigures

_PAGE: Final = Environment(
    loader=PackageLoader("app.training", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_DARK: Final = 0.5  # share from which white digits read better


def render_markdown(evaluation: Evaluation) -> str:
    """Return the figures as Markdown tables."""
    lines = [
        f"{_run(evaluation)}, window {evaluation.max_tokens} (head {evaluation.head_tokens})",
        "",
        (
            "| file | texts | accuracy | two-way accuracy | answered neutral | macro-F1 | calibration error "
            "| truncated | their accuracy |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, file in evaluation.files.items():
        head = file.polarity
        lines.append(
            f"| {name} | {head.texts} | {head.accuracy:.2%} | {_share(file.two_way_accuracy)} "
            f"| {file.neutral_answers:.1%} | {head.macro_f1:.3f} | {head.calibration_error:.3f} | {file.truncated} "
            f"| {_share(file.truncated_accuracy)} |"
        )
    if with_emotion := {name: file.emotion for name, file in evaluation.files.items() if file.emotion}:
        lines += ["", "| emotions of | texts | accuracy | macro-F1 | calibration error |", "| --- " * 5 + "|"]
        lines += [
            f"| {name} | {head.texts} | {head.accuracy:.2%} | {head.macro_f1:.3f} | {head.calibration_error:.3f} |"
            for name, head in with_emotion.items()
        ]
    if judged := {name: file for name, file in evaluation.files.items() if file.baselines}:
        others = sorted({name for file in judged.values() for name in file.baselines})
        lines += ["", f"| file | this model | {' | '.join(others)} |", "| --- " * (2 + len(others)) + "|"]
        lines += [
            f"| {name} | {_share(_comparable(file))} | "
            + " | ".join(_share(file.baselines.get(other)) for other in others)
            + " |"
            for name, file in judged.items()
        ]
    speed = evaluation.speed
    lines += [
        "",
        f"Alone against in a batch: {_compared(evaluation.alone)}",
        f"As served against full precision: {_compared(evaluation.reference)}",
        (
            f"Engine without a server: one text in {speed.alone_p50_ms:.1f} ms (p50) or {speed.alone_p99_ms:.1f} ms "
            f"(p99), in sorted batches {speed.batched_texts_per_s:.0f} texts/s."
        ),
    ]
    return "\n".join(lines)


def render_html(evaluation: Evaluation) -> str:
    """Return one self-contained page: figures by file, label and category, confusion and reliability as pictures."""
    return _PAGE.get_template("evaluation.html").render(
        evaluation=evaluation,
        run=_run(evaluation),
        share=_share,
        comparable=_comparable,
        compared=_compared,
        heads=_heads,
        confusion=_draw_confusion,
        reliability=_draw_reliability,
        labels_of={"polarity": evaluation.labels, "emotion": evaluation.emotions},
    )


def _run(evaluation: Evaluation) -> str:
    return f"{evaluation.model} on {evaluation.provider} {evaluation.precision}, {evaluation.date}"


def _heads(file: FileFigures) -> dict[str, HeadFigures]:
    return {"polarity": file.polarity} | ({"emotion": file.emotion} if file.emotion else {})


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _comparable(file: FileFigures) -> float:
    return file.polarity.accuracy if file.two_way_accuracy is None else file.two_way_accuracy


def _compared(comparison: Comparison) -> str:
    return (
        f"{comparison.flips} of {comparison.texts} labels differ, probabilities by {comparison.largest_difference:.4f} "
        "at most."
    )


def _draw_confusion(head: HeadFigures, labels: Sequence[str]) -> Markup:
    size = 1.6 + 0.6 * len(labels)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = [[count / max(1, sum(row)) for count in row] for row in head.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="answer", ylabel="true label")
    for row, counts in enumerate(head.confusion):
        for column, count in enumerate(counts):
            axes.text(
                column, row, str(count), ha="center", va="center",
                color="white" if shares[row][column] > _DARK else "black",
            )  # fmt: skip
    return _svg(figure)


def _draw_reliability(head: HeadFigures) -> Markup:
    figure = Figure(figsize=(3.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    most = max(count for count, _, _ in head.reliability)
    axes.scatter(
        [confidence for _, confidence, _ in head.reliability],
        [accuracy for _, _, accuracy in head.reliability],
        s=[20 + 150 * count / most for count, _, _ in head.reliability],
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    return _svg(figure)


def _svg(figure: Figure) -> Markup:
    with StringIO() as picture:
        figure.savefig(picture, format="svg", metadata={"Date": None})
        text = picture.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704  # drawn here, from numbers and the labels of a checked manifest
