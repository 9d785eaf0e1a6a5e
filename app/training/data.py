"""Labelled text files in, clean examples out: reading, cleaning, splitting, removing duplicates and leaks.

Knows the recipe's list of sources; nothing of models.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from datasketch import MinHash, MinHashLSH
from pydantic import Field
from sklearn.model_selection import train_test_split

from app.domain.cleaning import clean
from app.domain.errors import CannotProceed
from app.domain.labels import LABELS
from app.domain.rows import BadRow, read_rows

_FINGERPRINT_CHARACTERS = 20
_SHINGLE = 3  # characters
_PERMUTATIONS = 64  # of a MinHash: its estimate of a Jaccard similarity is off by about 0.06
_SHORT = 12  # letters; shorter texts resemble each other by chance
_SMALLEST_STRATUM = 2


class MissingFile(CannotProceed):
    """A data file is not where it was looked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text, cleaned, with what is known of it. None: not labelled."""

    text: str
    label: str | None
    source: str
    emotion: str | None = None
    category: str | None = None

    @property
    def answers(self) -> tuple[str | None, str | None]:
        """The label of each head."""
        return self.label, self.emotion


@dataclass(frozen=True, slots=True)
class Source:
    """A file of texts: JSON lines, CSV or Parquet, the first two optionally gzipped."""

    file: str
    text: Annotated[str, Field(description="Column of the text")] = "text"
    label: Annotated[str | None, Field(description="The label of every row, for files without such a column")] = None
    label_column: str = "label"
    mapping: Annotated[
        Mapping[str, str], Field(description='From what stands in that column, as `{ "5" = "positive" }` for stars')
    ] = field(default_factory=dict, hash=False)
    repeat: Annotated[int, Field(ge=1, description="How often an epoch shows each of its texts")] = 1
    dev_share: Annotated[float, Field(ge=0, lt=1, description="Set aside as dev, with the same shares of labels")] = 0.0
    taught: Annotated[bool, Field(description="Teachers have a say beside its labels")] = True

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
        if path.exists():
            return path
    raise MissingFile(f"no file {' or '.join(map(str, tried))}")


def read_examples(
    path: Path, source: Source, *, labels: Sequence[str] = LABELS, emotions: Sequence[str] = ()
) -> list[Example]:
    """Return the rows of the file `path`, laid out as `source` says, that have a text and a label or an emotion.

    Emotions are read where `emotions` names any.

    Raises:
        BadRow: a row is not readable, lacks its text, or has an unknown label or emotion.
    """
    examples = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        if not isinstance(raw := row.get(source.text), str):
            raise BadRow(f"{where}: no text in column {source.text!r}")
        label = source.label or _label_of(row, source)
        if label is not None and label not in labels:
            raise BadRow(f"{where}: label {label!r} is none of {', '.join([*source.mapping, *labels])}")
        emotion = row.get("emotion") or None if emotions else None
        if emotion is not None and emotion not in emotions:
            raise BadRow(f"{where}: emotion {emotion!r} is none of {', '.join(emotions)}")
        if (label is not None or emotion is not None) and (text := clean(raw)):
            category = row.get("category") or None
            examples.append(
                Example(
                    text, label, source.name, str(emotion) if emotion else None, str(category) if category else None
                )
            )
    return examples


def _label_of(row: Mapping[str, object], source: Source) -> str | None:
    found = row.get(source.label_column)
    if found is None or found == "":  # a CSV writes null as nothing
        return None
    written = str(int(found)) if isinstance(found, float) and found.is_integer() else str(found)
    return source.mapping.get(written, written)


def read_texts(path: Path, source: Source) -> list[str]:
    """Return the cleaned texts of a file, labelled or not.

    Raises:
        BadRow: a row is not readable or lacks its text.
    """
    texts = []
    for number, row in read_rows(path):
        if not isinstance(text := row.get(source.text), str):
            raise BadRow(f"{path}, line {number}: no text in column {source.text!r}")
        texts.append(clean(text))
    return [text for text in texts if text]


def split(examples: Sequence[Example], dev_share: float, *, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Return `examples` in two parts, the second of about `dev_share`, with the same labels and emotions in both."""
    strata = [(example.label or "", example.emotion or "") for example in examples]
    sizes = Counter(strata)
    kinds = [" ".join(stratum) if sizes[stratum] >= _SMALLEST_STRATUM else "rare" for stratum in strata]
    counts = Counter(kinds)
    roomy = len(counts) <= len(examples) * min(dev_share, 1 - dev_share)  # each part can hold each kind
    stratify = kinds if roomy and min(counts.values(), default=0) >= _SMALLEST_STRATUM else None
    train, dev = train_test_split(list(examples), test_size=dev_share, random_state=seed, stratify=stratify)
    return train, dev


@dataclass(frozen=True, slots=True)
class Report:
    """What preparing a training set removed, and what is left by source and label."""

    duplicates: int
    near_duplicates: int
    conflicting: int
    leaked: int
    kept: Counter[tuple[str, str]]


def prepare(
    training: Iterable[Example], held_out: Iterable[Example], *, near_duplicates: float | None = None
) -> tuple[list[Example], Report]:
    """Return `training` without repeated texts, texts with contradicting answers, and texts that `held_out` knows.

    Answers contradict each other when the same text has two labels or two emotions.

    A text counts as known when a held-out text has the same letters and digits or, where both have over 40, the same
    first or the same last 20 of them: review corpora share reviews whose ends were edited. With `near_duplicates`, of
    texts with the same labels whose sets of three-character shingles have at least this Jaccard similarity (estimated
    by MinHash, Broder 1997), the first is kept.
    """
    known = {mark for example in held_out for mark in _fingerprints(example.text)}
    answers: dict[str, tuple[set[str], set[str]]] = {}
    examples: dict[str, Example] = {}
    total = leaked = 0
    for example in training:
        total += 1
        marks = _fingerprints(example.text)
        if known.intersection(marks):
            leaked += 1
            continue
        for seen, given in zip(answers.setdefault(marks[0], (set(), set())), example.answers, strict=True):
            seen.update([given] if given else [])
        examples.setdefault(marks[0], example)
    consistent = {mark: example for mark, example in examples.items() if max(map(len, answers[mark])) <= 1}
    kept = (
        list(consistent.values()) if near_duplicates is None else _without_near_duplicates(consistent, near_duplicates)
    )
    return kept, Report(
        duplicates=total - leaked - len(examples),
        near_duplicates=len(consistent) - len(kept),
        conflicting=len(examples) - len(consistent),
        leaked=leaked,
        kept=Counter((example.source, example.label or "unlabelled") for example in kept),
    )


def _without_near_duplicates(examples: Mapping[str, Example], similarity: float) -> list[Example]:
    kept = []
    seen: dict[tuple[str | None, str | None], MinHashLSH] = {}
    for number, (letters, example) in enumerate(examples.items()):
        if len(letters) >= _SHORT:
            if (index := seen.get(example.answers)) is None:
                index = seen[example.answers] = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
            sketch = MinHash(num_perm=_PERMUTATIONS)
            sketch.update_batch([letters[at : at + _SHINGLE].encode() for at in range(len(letters) - _SHINGLE + 1)])
            if index.query(sketch):
                continue
            index.insert(number, sketch)
        kept.append(example)
    return kept


def _fingerprints(text: str) -> list[str]:
    letters = "".join(character for character in text if character.isalnum()).lower() or text
    if len(letters) <= 2 * _FINGERPRINT_CHARACTERS:
        return [letters]
    return [letters, "^" + letters[:_FINGERPRINT_CHARACTERS], letters[-_FINGERPRINT_CHARACTERS:] + "$"]
