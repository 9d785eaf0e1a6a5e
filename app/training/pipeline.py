"""From a recipe to a fine-tuned model: the steps in order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from app.domain.errors import CannotProceed
from app.training import e5
from app.training.adaptation import adapt
from app.training.augmentation import augmented
from app.training.data import Example, Report, find, prepare, read_examples, read_texts, split
from app.training.distillation import soft_labels
from app.training.export import export_bundle
from app.training.finetune import CALIBRATION, fine_tune
from app.training.recipe import Recipe, read_recipe

_log = structlog.get_logger(__name__)


class UnfitRecipe(CannotProceed):
    """The recipe of a teacher, of a start or of a soup does not fit the one that names it."""


def read_data(recipe: Recipe, places: Sequence[Path]) -> tuple[list[Example], list[Example], list[str]]:
    """Return what the recipe trains on (clean, once each), its dev examples, and its unlabelled texts.

    Raises:
        BadRow: a data file has a row that cannot be used.
        MissingFile: a data file is missing.
    """
    data = recipe.data
    read = {
        source: read_examples(find(source.file, places), source, labels=recipe.labels, emotions=recipe.emotions)
        for source in (*data.train, *data.dev, *data.test)
    }
    parts = {source: split(read[source], source.dev_share) for source in data.train if source.dev_share}
    dev = [example for source in data.dev for example in read[source]]
    dev += [example for _, part in parts.values() for example in part]
    held_out = [*dev, *(example for source in data.test for example in read[source])]
    rows = [example for source in data.train for example in (parts[source][0] if source in parts else read[source])]
    if data.as_published:
        return rows, dev, []
    train, report = prepare(rows, held_out, near_duplicates=data.near_duplicates)
    _tell(report, len(train))
    known = {example.text for example in train}
    unlabelled = [
        Example(text, None, source.name)
        for source in data.unlabelled
        for text in read_texts(find(source.file, places), source)
        if text not in known
    ]
    unlabelled, _ = prepare(unlabelled, held_out, near_duplicates=data.near_duplicates)
    return train, dev, [example.text for example in unlabelled]


def train_recipe(
    recipe_file: Path, data: Path, output: Path, *, base: Path | None, start: Path | None = None, resume: bool
) -> None:
    """Adapt and fine-tune by the recipe; files are looked for beside it, then in `data`.

    `start` is the model that the recipe starts from, where it is trained already.

    With `resume` a finished step is not done again and a step that was interrupted goes on from its last checkpoint.

    Raises:
        BadRow: a data file has a row that cannot be used.
        MissingFile: a data file, or the recipe of a teacher, a start or a soup is missing.
        UnfitRecipe: one of these recipes does not fit.
    """
    recipe = read_recipe(recipe_file)
    if resume and (output / CALIBRATION).is_file():  # what fine-tuning writes last
        _log.info("fine-tuned already", directory=str(output))
        return
    places = (recipe_file.parent, data)
    train, dev, unlabelled = read_data(recipe, places)
    texts = [*(example.text for example in train), *unlabelled]
    teachers = _train_teachers(recipe, recipe_file, data, output, base=base, resume=resume)
    soup: list[Path] = []
    if recipe.start is not None:
        start_file = find(recipe.start, [recipe_file.parent])
        base = start or _train_start(recipe, start_file, data, output, base=base, resume=resume)
        soup = _train_soup(recipe, recipe_file, data, output, start=base, resume=resume)
    elif base is None:
        base = output / "base"
        if not (resume and base.is_dir()):
            _log.info("base model written", directory=str(base), pieces=e5.save_base(base, texts))
    if recipe.adaptation is not None:
        adapted = output / "adapted"
        if not (resume and (adapted / "config.json").is_file()):
            loss = adapt(base, adapted, texts, settings=recipe.adaptation, resume=resume)
            _log.info("adapted", directory=str(adapted), loss=round(loss, 3))
        base = adapted
    shown, soft = _what_is_shown(recipe, teachers, train, unlabelled)
    metrics = fine_tune(
        base,
        output,
        shown,
        dev,
        heads=recipe.heads,
        tokens=recipe.tokens,
        settings=recipe.fine_tuning,
        soft=soft,
        soup=soup,
        resume=resume,
    )
    _log.info("fine-tuned", directory=str(output), **{name: round(value, 4) for name, value in metrics.items()})


def _train_start(
    recipe: Recipe, start_file: Path, data: Path, output: Path, *, base: Path | None, resume: bool
) -> Path:
    """Return the directory of the model that the recipe starts from, trained now unless `resume` finds it."""
    start = read_recipe(start_file)
    if start.heads != recipe.heads:
        raise UnfitRecipe(f"{start_file} is for {start.heads}, what starts from it for {recipe.heads}")
    train_recipe(start_file, data, output / "start", base=base, resume=resume)
    return output / "start"


def _train_soup(
    recipe: Recipe, recipe_file: Path, data: Path, output: Path, *, start: Path, resume: bool
) -> list[Path]:
    """Return the directories of the models that go into the soup, trained now unless `resume` finds them."""
    directories = []
    for file in recipe.fine_tuning.soup:
        part_file = find(file, [recipe_file.parent])
        part = read_recipe(part_file)
        if (part.heads, part.start) != (recipe.heads, recipe.start):
            raise UnfitRecipe(f"{part_file} has other labels or another start than {recipe_file}, whose soup it is for")
        directories.append(output / "soup" / part.name)
        train_recipe(part_file, data, directories[-1], base=None, start=start, resume=resume)
    return directories


def _train_teachers(
    recipe: Recipe, recipe_file: Path, data: Path, output: Path, *, base: Path | None, resume: bool
) -> list[Path]:
    """Return the bundles of the recipe's teachers, made now unless `resume` finds them."""
    distillation = recipe.fine_tuning.distillation
    bundles = []
    for file in distillation.teachers if distillation else ():
        teacher_file = find(file, [recipe_file.parent])
        teacher = read_recipe(teacher_file)
        if teacher.labels != recipe.labels:
            raise UnfitRecipe(f"{teacher_file} has the labels {teacher.labels}, its pupil {recipe.labels}")
        bundle = output / "teachers" / teacher.name / teacher.version
        if not (resume and bundle.is_dir()):
            run = output / "teachers" / f"{teacher.name}-run"
            train_recipe(teacher_file, data, run, base=base, resume=resume)
            export_bundle(run, teacher, output / "teachers")
        bundles.append(bundle)
    return bundles


def _what_is_shown(
    recipe: Recipe, teachers: Sequence[Path], train: Sequence[Example], unlabelled: Sequence[str]
) -> tuple[list[Example], NDArray[np.float32] | None]:
    """Return the examples of an epoch and, where the recipe has teachers, their probabilities beside them."""
    sources = {source.name: source for source in recipe.data.train}
    shown = [example for example in train for _ in range(sources[example.source].repeat)]
    shown += augmented(train, recipe.data.augment, seed=recipe.fine_tuning.seed)
    if not teachers:
        return shown, None
    shown += [Example(text, None, "unlabelled") for text in unlabelled]
    taught = [example.source not in sources or sources[example.source].taught for example in shown]
    asked = list(dict.fromkeys(example.text for example, is_taught in zip(shown, taught, strict=True) if is_taught))
    answers = dict(zip(asked, soft_labels(asked, teachers), strict=True))
    silence = np.full(len(recipe.labels), np.nan, np.float32)
    soft = np.array(
        [answers[example.text] if is_taught else silence for example, is_taught in zip(shown, taught, strict=True)]
    )
    return shown, soft


def _tell(report: Report, kept: int) -> None:
    _log.info(
        "data prepared", kept=kept, duplicates=report.duplicates, near_duplicates=report.near_duplicates,
        conflicting=report.conflicting, leaked=report.leaked,
    )  # fmt: skip
    for (source, label), texts in sorted(report.kept.items()):
        _log.info("data source", source=source, label=label, texts=texts)
