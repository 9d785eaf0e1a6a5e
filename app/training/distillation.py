"""What teachers say of texts: the mean of the probabilities of bundles, each run as it would be served."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.training.serving import open_served


def soft_labels(texts: Sequence[str], teachers: Sequence[Path]) -> NDArray[np.float32]:
    """Return probabilities (len(texts), labels of polarity) for cleaned `texts`: the mean over `teachers`.

    These are bundles with the same labels of polarity.

    Raises:
        StartupError: a bundle is not usable.
    """
    answers = []
    for directory in teachers:
        teacher = open_served(directory)
        manifest = teacher.bundle.manifest
        answers.append(teacher.answer(texts, title=manifest.name)[:, : len(manifest.labels)])
    mean: NDArray[np.float32] = np.mean(answers, axis=0, dtype=np.float32)
    return mean
