"""Answers of many machines: texts are cut into splits, Ray's workers answer them, the driver puts the answers together.

``OUTPUT.parts`` holds the texts of every split, the answers to those that are answered, and ``run.json`` once all are
cut. A file there is whole or not there, and has its split's name: a split that is answered twice counts once.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import ray
import ray.data
from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem, copy_files
from ray.exceptions import RayError
from rich.console import Console

from app.domain.errors import CannotProceed
from app.domain.rows import Form
from app.inference.bundle import open_bundle
from app.scoring.command import CHUNK, Pace, require_writable
from app.scoring.journal import require_same_run
from app.scoring.local import local_scorer
from app.scoring.output import Answer, assemble, read_answer
from app.scoring.source import Source, add_to_checksum
from app.scoring.summary import Tally
from app.settings import Settings

_SPLIT: Final = 4_096  # texts, among which the model finds some of equal length
_RUN: Final = "run.json"
_TEXTS: Final = ".texts"
_ANSWERS: Final = ".answers"


@dataclass(frozen=True, slots=True)
class Place:
    """A file of this machine or, where it was named by a URL, of a storage that all machines reach."""

    files: FileSystem
    path: str

    @classmethod
    def of(cls, name: str) -> "Place":
        """Return the place called `name`.

        Raises:
            CannotProceed: there is no such storage.
        """
        if "://" not in name:
            return cls(LocalFileSystem(), str(Path(name).absolute()))
        try:
            return cls(*FileSystem.from_uri(name))
        except (ArrowInvalid, NotImplementedError):  # whose words may hold a secret out of the URL
            raise CannotProceed(f"{name.partition('://')[0]}:// is no storage that Arrow reads") from None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def is_local(self) -> bool:
        """Whether other programs find it under its path."""
        return isinstance(self.files, LocalFileSystem)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Yield where it lies on this machine."""
        if self.files.get_file_info(self.path).type != FileType.File:
            raise CannotProceed(f"there is no file {self.path}")
        if self.is_local:
            yield Path(self.path)
            return
        with TemporaryDirectory() as directory:
            here = Path(directory, self.name)
            copy_files(self.path, str(here), self.files, LocalFileSystem())
            yield here


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where Ray runs; without an `address`, where RAY_ADDRESS says, or on this machine alone."""

    address: str | None = None
    workers: int | None = None


def score_on_cluster(
    texts: Place, output: Place, source: Source, form: Form, settings: Settings, *, cluster: Cluster, resume: bool
) -> None:
    """Answer every row of `texts`, read as `source` says; tell on standard error how it goes, and what came of it.

    Raises:
        CannotProceed: the rows cannot be read, the answers cannot be had or written, or there is nothing to resume.
    """
    require_writable(Path(output.path), form, here=output.is_local)
    model = settings.model.path.absolute()  # workers have directories of their own
    settings = settings.replace("model", {"path": model})
    console = Console(stderr=True)
    with texts.fetched() as path:
        source = replace(source, path=path)
        manifest = open_bundle(model).manifest
        run = {"input": texts.path, "column": source.text, "model": f"{manifest.name}/{manifest.version}"}
        parts = _Parts.open(output, source, run, resume=resume)
        with Pace(console, source.name, parts.rows) as pace:
            todo = parts.unanswered()
            pace.begin(parts.rows - sum(map(parts.size, todo)))
            if todo:
                for rows in _answer(parts, todo, run["model"], settings, cluster):
                    pace.add(rows)
        tally = Tally()
        _write(output, source, parts.answers(tally), form)
    parts.delete()
    console.print(f"{tally.rows:,} rows, {pace.rows:,} of them now: {pace.per_s:,.0f}/s")
    tally.show(console)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The splits of a run and their answers."""

    files: FileSystem
    rows: int

    @classmethod
    def open(cls, output: Place, source: Source, run: Mapping[str, str], *, resume: bool) -> "_Parts":
        """Cut the texts of `source`, or with `resume` go on with those that are cut already."""
        path = f"{output.path}.parts"
        files = SubTreeFileSystem(path, output.files)
        if files.get_file_info(_RUN).type == FileType.NotFound:
            output.files.create_dir(path)
            files.delete_dir_contents("", accept_root_dir=True)  # of a run that was killed as it cut
            found = _cut(source, files)
            _put(files, _RUN, [json.dumps({"run": run, **found}).encode()])
        elif not resume:
            raise CannotProceed(f"{path} is of a run that did not end: go on with --resume, or delete it")
        else:
            state = json.loads(files.open_input_stream(_RUN).read())
            require_same_run(state.pop("run"), run, path)
            found = _cut(source)
            if found != state:
                raise CannotProceed(f"{source} has other texts than when the run began; delete {path} to begin anew")
        return cls(files, found["rows"])

    def size(self, split: int) -> int:
        """Return how many texts a split has."""
        return min(_SPLIT, self.rows - split * _SPLIT)

    def unanswered(self) -> list[int]:
        """Return the splits without answers."""
        names = {found.base_name for found in self.files.get_file_info(FileSelector("")) if found.size}
        return [split for split in range(-(-self.rows // _SPLIT)) if f"{split:08}{_ANSWERS}" not in names]

    def texts(self, split: int) -> Iterator[tuple[str, object]]:
        """Yield what each row of a split is called, and its text."""
        for line in self.files.open_input_stream(f"{split:08}{_TEXTS}").read().splitlines():
            name, text = json.loads(line)
            yield name, text

    def answer(self, split: int, tally: Tally, answers: Sequence[bytes]) -> None:
        """Keep the answers to a split, and what came of it."""
        _put(self.files, f"{split:08}{_ANSWERS}", [json.dumps(tally.content()).encode(), *answers])

    def answers(self, tally: Tally) -> Iterator[Answer]:
        """Yield all answers, in order, and count them in `tally`."""
        for split in range(-(-self.rows // _SPLIT)):
            first, *lines = self.files.open_input_stream(f"{split:08}{_ANSWERS}").read().splitlines()
            tally.merge(Tally.of(json.loads(first)))
            yield from map(read_answer, lines)

    def delete(self) -> None:
        """Leave nothing behind: the output is whole."""
        self.files.base_fs.delete_dir(self.files.base_path)


def _cut(source: Source, files: FileSystem | None = None) -> dict[str, int]:
    """Write the texts of `source` into `files`, if there are any; return what tells whether they are the same again."""
    checksum = count = split = 0
    rows = source.rows(texts_only=files is None)  # a row that cannot be read is known before the work
    while some := list(islice(rows, _SPLIT)):
        texts = [row.get(source.text) for _, row in some]
        if files is not None:
            named = zip((source.name_of(*each) for each in some), texts, strict=True)
            # What is no string gets the same answer, whatever it is.
            lines = (json.dumps([name, text if isinstance(text, str) else None]).encode() for name, text in named)
            _put(files, f"{split:08}{_TEXTS}", lines)
        for text in texts:
            checksum = add_to_checksum(checksum, text)
        count, split = count + len(some), split + 1
    return {"rows": count, "checksum": checksum, "split": _SPLIT}


def _put(files: FileSystem, name: str, lines: Iterable[bytes]) -> None:
    """Write a file, which others see when it is whole."""
    unfinished = f"{name}.{uuid4().hex}"
    with files.open_output_stream(unfinished) as file:
        file.write(b"".join(line + b"\n" for line in lines))
    files.move(unfinished, name)


def _write(output: Place, source: Source, answers: Iterable[Answer], form: Form) -> None:
    if output.is_local:
        assemble(source, answers, Path(output.path), form)
        return
    with TemporaryDirectory() as directory:
        here = Path(directory, output.name)
        assemble(source, answers, here, form)
        copy_files(str(here), output.path, LocalFileSystem(), output.files)


def _answer(parts: _Parts, splits: Sequence[int], model: str, settings: Settings, cluster: Cluster) -> Iterator[int]:
    """Have `splits` answered, in whatever order; yield the number of rows of each."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is told once, below
    try:
        ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(each.get("GPU", 0)) for each in machines)
        gpus = 0 if settings.model.provider in {"cpu", "openvino"} else gpus
        workers = cluster.workers or gpus or sum(each.get("CPU", 0) >= 1 for each in machines) or 1
        work = ray.data.from_items([{"split": split} for split in splits], override_num_blocks=len(splits))
        answered = work.map_batches(
            _Worker,
            fn_constructor_args=(settings, parts, model),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(splits))),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
        )
        for row in answered.iter_rows():
            yield row["rows"]
    except RayError as error:
        reason = str(error).strip().rpartition("\n")[2]  # below a traceback
        raise CannotProceed(f"a worker failed: {reason}; --resume goes on") from None
    finally:
        ray.shutdown()


class _Worker:
    """Holds the model in a process of its own, and answers one split after the other."""

    def __init__(self, settings: Settings, parts: _Parts, model: str) -> None:
        self._parts = parts
        self._loop = asyncio.Runner()
        self._open = AsyncExitStack()  # to the process's end
        self._scorer = self._loop.run(self._open.enter_async_context(local_scorer(settings)))
        if self._scorer.model != model:
            raise CannotProceed(f"a worker has the model {self._scorer.model}, and not {model}")

    def __call__(self, splits: Mapping[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self._loop.run(self._answer(int(split))) for split in splits["split"]]}

    async def _answer(self, split: int) -> int:
        names, texts = zip(*self._parts.texts(split), strict=True)
        answers = []
        async with aclosing(self._scorer.answers(_chunks(texts))) as chunks:
            async for some in chunks:
                answers.extend(some)
        tally = Tally()
        for name, answer in zip(names, answers, strict=True):
            tally.add(read_answer(answer), name)
        self._parts.answer(split, tally, answers)
        return len(answers)


async def _chunks(texts: Sequence[object]) -> AsyncIterator[Sequence[object]]:
    for start in range(0, len(texts), CHUNK):
        yield texts[start : start + CHUNK]
