"""From a recipe to a fine-tuned model: the steps in order."""

from pathlib import Path

import structlog

from app.training import e5
from app.training.data import Example, Source, find, prepare, read_examples, read_texts
from app.training.finetune import fine_tune
from app.training.recipe import read_recipe

_log = structlog.get_logger(__name__)


def train_recipe(recipe_file: Path, data: Path, output: Path, *, base: Path | None, resume: bool) -> None:
    """Fine-tune by the recipe; files are looked for beside it, then in `data`.

    Raises:
        BadRow: a data file has a row that cannot be used.
        MissingFile: a data file is missing.
    """
    recipe = read_recipe(recipe_file)
    places = (recipe_file.parent, data)

    def read(sources: tuple[Source, ...]) -> list[Example]:
        return [example for source in sources for example in read_examples(find(source.file, places), source)]

    dev = read(recipe.data.dev)
    train, report = prepare(read(recipe.data.train), [*dev, *read(recipe.data.test)])
    _log.info(
        "data prepared", kept=len(train), duplicates=report.duplicates, conflicting=report.conflicting,
        leaked=report.leaked,
    )  # fmt: skip
    for (source, label), texts in sorted(report.kept.items()):
        _log.info("data source", source=source, label=label, texts=texts)
    if base is None:
        base = output / "base"
        if not (resume and base.is_dir()):
            corpus = [example.text for example in train]
            for file in recipe.data.unlabelled:
                corpus += read_texts(find(file, places))
            pieces = e5.save_base(base, corpus)
            _log.info("base model written", directory=str(base), pieces=pieces)
    repeats = {source.name: source.repeat for source in recipe.data.train}
    metrics = fine_tune(
        base,
        output,
        [example for example in train for _ in range(repeats[example.source])],
        dev,
        tokens=recipe.tokens,
        settings=recipe.fine_tuning,
        resume=resume,
    )
    _log.info("fine-tuned", directory=str(output), **{name: round(value, 4) for name, value in metrics.items()})
