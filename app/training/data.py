"""Labelled text files in, clean examples out: reading, cleaning, removing duplicates and leaks.

Knows the recipe's list of sources; nothing of models.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.domain.cleaning import clean
from app.domain.errors import CannotProceed
from app.domain.labels import LABELS, Label
from app.domain.rows import BadRow, read_rows

_FINGERPRINT_CHARACTERS = 20


class MissingFile(CannotProceed):
    """A data file is not where it was looked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text, cleaned."""

    text: str
    label: Label
    source: str


@dataclass(frozen=True, slots=True)
class Source:
    """A file of texts: JSON lines or CSV, optionally gzipped, with the columns `text` and `label`."""

    file: str
    text: str = "text"  # name of the column that holds the text
    label: Label | None = None  # the label of every row, for files without such a column
    repeat: int = 1  # how often an epoch shows each of its texts

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return self.file.removesuffix(".gz").rsplit(".", 1)[0]


def find(file: str, directories: Iterable[Path]) -> Path:
    """Return the first of `directories` / `file` that exists.

    Raises:
        MissingFile: none does.
    """
    tried = [directory / file for directory in directories]
    for path in tried:
        if path.is_file():
            return path
    raise MissingFile(f"no file {' or '.join(map(str, tried))}")


def read_examples(path: Path, source: Source) -> list[Example]:
    """Return the labelled rows of the file `path`, laid out as `source` says.

    Rows whose label is null or whose text is blank are left out.

    Raises:
        BadRow: a row is not JSON, lacks its text, or has an unknown label.
    """
    examples = []
    for number, row in read_rows(path):
        raw = row.get(source.text)
        label = source.label or row.get("label") or None  # a CSV writes null as nothing
        if not isinstance(raw, str):
            raise BadRow(f"{path}, line {number}: no text in column {source.text!r}")
        if label is None:
            continue
        if label not in LABELS:
            raise BadRow(f"{path}, line {number}: label {label!r} is none of {', '.join(LABELS)}")
        if text := clean(raw):
            examples.append(Example(text, label, source.name))
    return examples


def read_texts(path: Path) -> list[str]:
    """Return the cleaned texts of a JSON lines or CSV file, labelled or not."""
    texts = []
    for number, row in read_rows(path):
        if not isinstance(text := row.get("text"), str):
            raise BadRow(f"{path}, line {number}: no text in column 'text'")
        texts.append(clean(text))
    return texts


@dataclass(frozen=True, slots=True)
class Report:
    """What preparing a training set removed, and what is left by source and label."""

    duplicates: int
    conflicting: int
    leaked: int
    kept: Counter[tuple[str, str]]


def prepare(training: Iterable[Example], held_out: Iterable[Example]) -> tuple[list[Example], Report]:
    """Return `training` without repeated texts, texts with contradicting labels, and texts that `held_out` knows.

    A text counts as known when a held-out text has the same letters and digits or, where both have over 40, the same
    first or the same last 20 of them: review corpora share reviews whose ends were edited.
    """
    known = {mark for example in held_out for mark in _fingerprints(example.text)}
    labels: dict[str, set[Label]] = {}
    examples: dict[str, Example] = {}
    total = leaked = 0
    for example in training:
        total += 1
        marks = _fingerprints(example.text)
        if known.intersection(marks):
            leaked += 1
            continue
        labels.setdefault(marks[0], set()).add(example.label)
        examples.setdefault(marks[0], example)
    kept = [example for mark, example in examples.items() if len(labels[mark]) == 1]
    conflicting = len(examples) - len(kept)
    return kept, Report(
        duplicates=total - leaked - len(examples),
        conflicting=conflicting,
        leaked=leaked,
        kept=Counter((example.source, example.label) for example in kept),
    )


def _fingerprints(text: str) -> list[str]:
    letters = "".join(character for character in text if character.isalnum()).lower() or text
    if len(letters) <= 2 * _FINGERPRINT_CHARACTERS:
        return [letters]
    return [letters, "^" + letters[:_FINGERPRINT_CHARACTERS], letters[-_FINGERPRINT_CHARACTERS:] + "$"]
