"""A BERT small enough to train in a test, and reviews that it can learn."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from app.training.recipe import Data, FineTuning, Recipe, Tokens

torch.set_num_threads(1)  # a model this small loses time to threads

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_WORDS = {
    "negative": ("太差了", "难吃", "退货", "坏了", "后悔"),
    "neutral": ("请问", "几点", "营业", "地址", "多少"),
    "positive": ("好吃", "喜欢", "满意", "推荐", "很快"),
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of two layers over single characters."""
    directory = tmp_path_factory.mktemp("base")
    characters = sorted({character for words in _WORDS.values() for word in words for character in word})
    vocabulary = {piece: index for index, piece in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training, dev and test files whose labels follow from their words."""
    directory = tmp_path_factory.mktemp("data")
    texts = [
        (f"{first}{second}{third}", label)
        for label, words in _WORDS.items()
        for first in words
        for second in words
        for third in words
    ]
    for name, offset in {"train": 0, "dev": 1, "test": 2}.items():
        rows = texts if name == "train" else texts[offset::7]
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for text, label in rows:
                lines.write(json.dumps({"text": text + name, "label": label}, ensure_ascii=False) + "\n")
    return directory


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """A recipe over `data` that trains in seconds."""
    return Recipe.model_validate(
        {
            "name": "tiny",
            "version": "0.0.1",
            "golden": ["好吃", "难吃", "请问几点营业", "喜欢喜欢喜欢推荐"],
            "data": Data.model_validate(
                {"train": [{"file": "train.jsonl"}], "dev": [{"file": "dev.jsonl"}], "test": [{"file": "test.jsonl"}]}
            ),
            "tokens": Tokens(max_tokens=16, head_tokens=8),
            "fine_tuning": FineTuning(epochs=6, learning_rate=3e-3, batch_size=32),
        }
    )
