"""The bundle that is served by default answers as its torch model did when it was exported."""

import numpy as np
import pytest

from app.domain.cleaning import clean
from app.inference.bundle import open_bundle
from app.inference.engine import Engine
from app.inference.session import Precision, Provider, open_model
from app.inference.tokenizer import Tokenizer
from app.settings import Settings


@pytest.mark.parametrize(
    ("provider", "precision", "tolerance"),
    [("cpu", "fp32", 1e-3), ("auto", "auto", 1e-2)],
    ids=["full precision", "as served"],
)
def test_golden_texts_get_the_probabilities_of_torch(
    provider: Provider, precision: Precision, tolerance: float
) -> None:
    bundle = open_bundle(Settings().model.path)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    tokens = [text.ids for text in tokenizer.encode([clean(row.text) for row in bundle.golden])]
    model = open_model(bundle.model_file, provider=provider, precision=precision, threads=1)
    engine = Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=manifest.max_tokens)
    expected = np.array([[row.probabilities[column] for column in manifest.heads.columns] for row in bundle.golden])
    assert np.abs(np.array(engine.run_now(tokens)) - expected).max() <= tolerance
    assert max(len(ids) for ids in tokens) > 64  # a long one is among them
