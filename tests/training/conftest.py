"""A BERT small enough to train in a test, and what is made with it once for all tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from app.domain.labels import LABELS, Heads
from app.training.data import Example
from app.training.export import export_bundle
from app.training.finetune import fine_tune
from app.training.recipe import FineTuning, Recipe, Tokens
from tests.training.reviews import EMOTIONS, WORDS, reviews

torch.set_num_threads(1)  # a model this small loses time to threads

TOKENS = Tokens(max_tokens=16, head_tokens=8)
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of two layers over single characters."""
    directory = tmp_path_factory.mktemp("base")
    characters = sorted({character for words in WORDS.values() for word in words for character in word})
    vocabulary = {piece: index for index, piece in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,  # so small a model learns nothing from the usual 0.02
        pad_token_id=1,
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, where it is, and its dev metrics."""

    directory: Path
    model: BertForSequenceClassification
    metrics: dict[str, float]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's parameters by name."""
        return dict(self.model.state_dict())

    @property
    def checkpoints(self) -> list[Path]:
        """Its checkpoints, the oldest first."""
        found = (self.directory / "checkpoints").glob("checkpoint-*")
        return sorted(found, key=lambda checkpoint: int(checkpoint.name.split("-")[1]))


class Tune:
    """Fine-tunes `base` with a fresh directory for each model."""

    def __init__(self, base: Path, make_directory: Callable[[], Path]) -> None:
        self._base = base
        self._make_directory = make_directory

    def __call__(
        self,
        train: Sequence[Example],
        dev: Sequence[Example] | None = None,
        *,
        base: Path | None = None,
        into: Path | None = None,
        heads: Heads = Heads(LABELS),  # noqa: B008  # frozen
        soft: NDArray[np.float32] | None = None,
        **settings: Any,
    ) -> Tuned:
        """Fine-tune with `settings`; goes on from the newest checkpoint in `into`, if that is given."""
        directory = into or self._make_directory()
        metrics = fine_tune(
            base or self._base,
            directory,
            train,
            dev or reviews()[::9],
            heads=heads,
            tokens=TOKENS,
            settings=FineTuning.model_validate(
                {"epochs": 1, "learning_rate": 3e-3, "batch_size": 32, "precision": "fp32"} | settings
            ),
            soft=soft,
            resume=into is not None,
        )
        model = BertForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()
        return Tuned(directory, model, metrics)


@pytest.fixture(scope="session")
def tune(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Tune:
    return Tune(base, lambda: tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """What `bundle` is exported by."""
    return Recipe.model_validate(
        {
            "name": "tiny",
            "version": "0.0.1",
            "emotions": EMOTIONS,
            "golden": ["好吃", "难吃", "请问几点营业", "喜欢喜欢喜欢推荐"],
            "provenance": {"license": "MIT"},
            "data": {"train": [{"file": "train.jsonl", "dev_share": 0.1}]},
            "tokens": TOKENS,
        }
    )


@pytest.fixture(scope="session")
def tuned(tune: Tune) -> Tuned:
    """A model with two heads that has learnt the reviews."""
    return tune(reviews() * 10, heads=Heads(LABELS, EMOTIONS), classifier_dropout=0)


@pytest.fixture(scope="session")
def bundle(tuned: Tuned, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    return export_bundle(tuned.directory, recipe, tmp_path_factory.mktemp("models"))
