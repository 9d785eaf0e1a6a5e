"""What teachers say of texts: the mean of the probabilities of bundles, each run as it would be served."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import CannotProceed
from app.training.serving import open_served


class UnfitTeacher(CannotProceed):
    """A teacher does not know the labels that are to be learnt."""


def soft_labels(texts: Sequence[str], teachers: Sequence[Path], labels: Sequence[str]) -> NDArray[np.float32]:
    """Return probabilities (len(texts), len(labels)) for cleaned `texts`, the mean over the bundles `teachers`.

    Raises:
        StartupError: a bundle is not usable.
        UnfitTeacher: a bundle has other labels.
    """
    answers = []
    for directory in teachers:
        teacher = open_served(directory)
        if teacher.bundle.manifest.labels != tuple(labels):
            raise UnfitTeacher(f"{directory} has the labels {teacher.bundle.manifest.labels}, not {tuple(labels)}")
        answers.append(teacher.answer(texts, title=teacher.bundle.manifest.name)[:, : len(labels)])
    mean: NDArray[np.float32] = np.mean(answers, axis=0, dtype=np.float32)
    return mean
