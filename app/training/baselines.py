"""What a model has to beat: the library snownlp, and logistic regression on character n-grams."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from snownlp import SnowNLP

from app.training.data import Example, Source, read_examples
from app.training.evaluate import Evaluation
from app.training.pipeline import read_data
from app.training.recipe import read_recipe

SNOWNLP = "snownlp"
NGRAMS = "TF-IDF + logistic regression"


def add_baselines(evaluation: Evaluation, files: Sequence[Path], *, recipe_file: Path, data: Path) -> Evaluation:
    """Return `evaluation` with the accuracy of both baselines on the same files.

    The n-grams learn from the training data of the recipe; snownlp brings a model of its own and knows no neutral, so
    it is asked only where a file has none.

    Raises:
        BadRow: a data file has a row that cannot be used.
        MissingFile: a data file is missing.
    """
    train, _, _ = read_data(read_recipe(recipe_file), (recipe_file.parent, data))
    ngrams = train_ngrams(train)
    judged = {}
    for file in files:
        source = Source(file.name)
        examples = read_examples(file, source, labels=evaluation.labels)
        figures = evaluation.files[source.name]
        found = {NGRAMS: accuracy_of_ngrams(ngrams, examples)}
        if figures.two_way_accuracy is not None:
            found[SNOWNLP] = accuracy_of_snownlp(examples)
        judged[source.name] = figures.model_copy(update={"baselines": found})
    return evaluation.model_copy(update={"files": judged})


def train_ngrams(examples: Sequence[Example]) -> Pipeline:
    """Return a classifier over character 1- to 3-grams, fitted on the labelled ones of `examples`."""
    labelled = [example for example in examples if example.label is not None]
    model = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=3, max_features=300_000, sublinear_tf=True),
        LogisticRegression(C=4, max_iter=200),
    )
    return model.fit([example.text for example in labelled], [example.label for example in labelled])


def accuracy_of_ngrams(model: Pipeline, examples: Sequence[Example]) -> float:
    """Return the share of labelled examples that `model` gets right, neutral dropped where none of them is neutral."""
    labelled = [example for example in examples if example.label is not None]
    answers: NDArray[np.float64] = model.predict_proba([example.text for example in labelled])
    labels = list(model.classes_)
    if "neutral" in labels and not any(example.label == "neutral" for example in labelled):
        answers[:, labels.index("neutral")] = -1
    given = [labels[index] for index in answers.argmax(axis=1)]
    return _share_right(given, labelled)


def accuracy_of_snownlp(examples: Sequence[Example]) -> float:
    """Return the share of positive and negative examples that snownlp 0.12 gets right; it knows no neutral."""
    polar = [example for example in examples if example.label in {"negative", "positive"}]
    given = ["positive" if SnowNLP(example.text).sentiments >= 1 / 2 else "negative" for example in polar]
    return _share_right(given, polar)


def _share_right(given: Sequence[str], examples: Sequence[Example]) -> float:
    right = [answer == example.label for answer, example in zip(given, examples, strict=True)]
    return round(float(np.mean(right)), 5) if right else 0.0
