"""What the bundled model understands, in the manner of CheckList (Ribeiro et al. 2020, arXiv:2005.04118).

The cases are written for this purpose and must never be trained on. A floor is what the model reached when it was
released: a change that makes it worse at one thing must not hide behind being better at another.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from app.domain.cleaning import clean
from app.domain.rows import read_rows
from app.domain.sentiment import most_probable
from app.inference.bundle import open_bundle
from app.inference.engine import Engine
from app.inference.session import open_model
from app.inference.tokenizer import Tokenizer
from app.settings import Settings

_HERE: Final = Path(__file__).parent
_CASES: Final = [json.loads(line) for line in (_HERE / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
_FLOORS: Final = {
    "negation": 19,
    "contrast": 16,
    "sarcasm": 15,
    "question": 18,
    "service message": 19,
    "implicit complaint": 19,
    "colloquial": 17,
    "emoji": 20,
    "traditional": 18,
    "mixed language": 17,
    "invariance": 24,
}


@pytest.fixture(scope="module")
def labels() -> dict[str, str]:
    """The label of every text of the cases, by the default bundle in full precision."""
    bundle = open_bundle(Settings().model.path)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    model = open_model(bundle.model_file, provider="cpu", precision="fp32", threads=1)
    engine = Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=manifest.max_tokens)
    texts = [case[field] for case in _CASES for field in ("text", "same_as") if field in case]
    answers = engine.run_now([text.ids for text in tokenizer.encode([clean(text) for text in texts])])
    return {text: most_probable(manifest.heads.name(answer)[0]) for text, answer in zip(texts, answers, strict=True)}


@pytest.mark.parametrize("capability", _FLOORS)
def test_the_model_is_no_worse_than_when_it_was_released(capability: str, labels: dict[str, str]) -> None:
    cases = [case for case in _CASES if case["capability"] == capability]
    wrong = [
        case["text"]
        for case in cases
        if labels[case["text"]] != (case["label"] if "label" in case else labels[case["same_as"]])
    ]
    assert len(cases) - len(wrong) >= _FLOORS[capability], wrong


def test_no_case_stands_in_the_texts_written_for_training() -> None:
    files = sorted((Settings().model.path.parent / "written").glob("*.jsonl"))
    trained = {clean(str(row["text"])) for file in files for _, row in read_rows(file)}
    assert trained
    assert not trained & {clean(case[field]) for case in _CASES for field in ("text", "same_as") if field in case}


def test_every_capability_has_a_floor() -> None:
    assert Counter(case["capability"] for case in _CASES).keys() == _FLOORS.keys()
