"""A bundle: the directory that holds a model and all that serving it takes, checked before it is used.

Layout: ``bundle.json`` (this module's `Manifest`) beside the files it names, each with size and SHA-256.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from app.domain.cleaning import CLEANING_VERSION
from app.domain.errors import StartupError
from app.domain.labels import Heads

MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
HALF: Final = "model.fp16.onnx"  # the same in half precision, for CUDA; a bundle may have it
TOKENIZER: Final = "tokenizer.json"
GOLDEN: Final = "golden.json"

_PLAIN_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"  # no way out of the directory


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """Size in bytes and SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class Calibration(_Record):
    """How far probabilities can be read as rates, measured on the dev texts when the bundle was made.

    The temperatures are part of the model already. Errors are expected calibration errors (Naeini et al. 2015).
    """

    temperatures: dict[str, float]  # by head
    error_before: dict[str, float]
    error_after: dict[str, float]
    threshold: Annotated[float, Field(ge=0, le=1)]  # answers of lower confidence are not certain
    certain_share: float
    certain_accuracy: float


class Manifest(_Record):
    """What `bundle.json` says."""

    format: Literal[1] = 1
    name: str
    version: str
    labels: Annotated[tuple[str, ...], Field(min_length=2)]  # in the order of the logits
    emotions: tuple[str, ...] = ()  # of a second head, whose logits follow
    calibration: Calibration | None = None
    max_tokens: int
    head_tokens: int
    pad_id: int
    cleaning_version: int
    files: dict[Annotated[str, Field(pattern=_PLAIN_NAME)], FileRecord]
    provenance: dict[str, str]  # base model, licence, recipe, data
    tools: dict[str, str]  # versions of the libraries that made it

    @model_validator(mode="after")
    def _head_within_window(self) -> Self:
        if not 0 < self.head_tokens < self.max_tokens:
            raise ValueError(f"head_tokens must lie between 1 and {self.max_tokens - 1}")
        return self

    @property
    def heads(self) -> Heads:
        """The labels of both heads."""
        return Heads(self.labels, self.emotions)


class GoldenText(_Record):
    """A text and the probability of each column that the exported model gave in full precision."""

    text: str
    probabilities: dict[str, float]


_GOLDEN_TEXTS: Final = TypeAdapter(Annotated[list[GoldenText], Field(min_length=1)])


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle. `fingerprint` changes with every byte of every file."""

    directory: Path
    manifest: Manifest
    fingerprint: str
    golden: tuple[GoldenText, ...]

    @property
    def model_file(self) -> Path:
        """The ONNX file."""
        return self.directory / MODEL

    @property
    def half_file(self) -> Path | None:
        """The ONNX file that computes in half precision, if the bundle has one."""
        return self.directory / HALF if HALF in self.manifest.files else None

    @property
    def tokenizer_file(self) -> Path:
        """The Hugging Face `tokenizer.json`."""
        return self.directory / TOKENIZER


def open_bundle(directory: Path) -> Bundle:
    """Return the bundle in `directory`, every file of it verified.

    Raises:
        StartupError: something is missing, damaged, or made for another version of this program.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise StartupError(f"{directory} is not a bundle: its {MANIFEST} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise StartupError(f"{path} is not a valid bundle manifest: {error}") from None
    if manifest.cleaning_version != CLEANING_VERSION:
        raise StartupError(
            f"{directory} was trained on text cleaned by version {manifest.cleaning_version}, this program cleans by "
            f"version {CLEANING_VERSION}: train it again, or serve it with the release that made it"
        )
    if absent := {MODEL, TOKENIZER, GOLDEN} - manifest.files.keys():
        raise StartupError(f"{path} names no {', '.join(sorted(absent))}")
    for name, record in manifest.files.items():
        _verify(directory / name, record)
    try:
        golden = _GOLDEN_TEXTS.validate_json((directory / GOLDEN).read_bytes())
    except ValidationError as error:
        raise StartupError(f"{directory / GOLDEN} is not a list of golden texts: {error}") from None
    if any(text.probabilities.keys() != set(manifest.heads.columns) for text in golden):
        raise StartupError(f"{directory / GOLDEN} does not record a probability for each label of {MANIFEST}")
    return Bundle(directory, manifest, _fingerprint(content), tuple(golden))


def fingerprint_of(directory: Path) -> str | None:
    """Return the fingerprint that the bundle in `directory` will have if it opens; None if it has no manifest."""
    try:
        return _fingerprint((directory / MANIFEST).read_bytes())
    except OSError:
        return None


def _fingerprint(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def record_file(path: Path) -> FileRecord:
    """Return size and checksum of `path`."""
    with path.open("rb") as content:
        return FileRecord(bytes=path.stat().st_size, sha256=hashlib.file_digest(content, "sha256").hexdigest())


def _verify(path: Path, expected: FileRecord) -> None:
    try:
        found = record_file(path)
    except FileNotFoundError:
        raise StartupError(f"{path} is missing") from None
    if found != expected:
        raise StartupError(
            f"{path} is damaged: {found.bytes} bytes with SHA-256 {found.sha256[:12]}…, the bundle was made with "
            f"{expected.bytes} bytes and {expected.sha256[:12]}…"
        )
