"""What adaptation and fine-tuning share: the settings of the Hugging Face trainer, and texts as its data."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from app.inference.processor import has_bf16
from app.inference.tokenizer import Tokenizer
from app.training.recipe import Optimisation


class TokenizedTexts(Dataset[dict[str, object]]):
    """Token ids of texts, with further columns beside them."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], **columns: Sequence[object]) -> None:
        self._ids = [list(text.ids) for text in tokenizer.encode(texts)]
        self._columns: Mapping[str, Sequence[object]] = columns

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"input_ids": self._ids[index], **{name: values[index] for name, values in self._columns.items()}}


def training_arguments(checkpoints: Path, settings: Optimisation, **more: Any) -> TrainingArguments:
    """Return the trainer's arguments for `settings`; checkpoints and TensorBoard logs go to `checkpoints`."""
    gpu = torch.cuda.is_available()
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if (torch.cuda.is_bf16_supported() if gpu else has_bf16()) else "fp32"
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        use_cpu=not gpu,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        group_by_length=True,
        save_total_limit=2,
        logging_steps=50,
        disable_tqdm=not sys.stderr.isatty(),
        report_to=["tensorboard"],
        dataloader_num_workers=0,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        **more,
    )


def dropouts(settings: Optimisation) -> dict[str, object]:
    """Return how a `BertConfig` trains fast on CPUs.

    Eager attention trains twice as fast there as SDPA; dropout of attention costs more random numbers than it gains.
    """
    return {
        "attn_implementation": "eager",
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": settings.hidden_dropout,
    }
