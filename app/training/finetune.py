"""Fine-tune a Hugging Face BERT on clean examples with the Hugging Face trainer. Knows nothing of ONNX or serving."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from app.domain.labels import LABELS
from app.inference.processor import has_bf16
from app.inference.tokenizer import Tokenizer
from app.training.data import Example
from app.training.recipe import FineTuning, Tokens


class _TokenizedExamples(Dataset[dict[str, object]]):
    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer) -> None:
        self._rows = [
            {"input_ids": list(text.ids), "label": LABELS.index(example.label)}
            for example, text in zip(examples, tokenizer.encode([e.text for e in examples]), strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self._rows[index]


def fine_tune(
    base: Path,
    output: Path,
    train: Sequence[Example],
    dev: Sequence[Example],
    *,
    tokens: Tokens,
    settings: FineTuning,
    resume: bool,
) -> dict[str, float]:
    """Fine-tune the BERT in directory `base`, write the best epoch's model to `output` and return its dev metrics.

    `base` is any directory that `BertForSequenceClassification.from_pretrained` takes and that has a `tokenizer.json`.
    Checkpoints stand in `output/checkpoints`; with `resume` training goes on from the newest.
    """
    tokenizer = Tokenizer(base / "tokenizer.json", max_tokens=tokens.max_tokens, head_tokens=tokens.head_tokens)
    hugging_face_tokenizer = AutoTokenizer.from_pretrained(base)
    model = BertForSequenceClassification.from_pretrained(
        base,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        # On CPUs eager attention trains twice as fast as SDPA, and dropout's random numbers cost more than they gain.
        attn_implementation="eager",
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        classifier_dropout=settings.dropout,
    )
    checkpoints = output / "checkpoints"
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            warmup_ratio=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_bf16(),
            group_by_length=True,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="macro_f1",
            logging_steps=50,
            disable_tqdm=not sys.stderr.isatty(),
            report_to=[],
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
        ),
        train_dataset=_TokenizedExamples(train, tokenizer),
        eval_dataset=_TokenizedExamples(dev, tokenizer),
        data_collator=DataCollatorWithPadding(hugging_face_tokenizer),
        compute_metrics=_metrics,
    )
    trainer.train(resume_from_checkpoint=resume)
    _round_weights_to_half(model)
    metrics = trainer.evaluate()
    model.save_pretrained(output)
    hugging_face_tokenizer.save_pretrained(output)
    return {name: float(value) for name, value in metrics.items()}


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    expected = np.asarray(prediction.label_ids)
    predicted = np.asarray(prediction.predictions).argmax(axis=-1)
    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "macro_f1": float(f1_score(expected, predicted, average="macro")),
    }


def _round_weights_to_half(model: torch.nn.Module) -> None:
    """Round weights to float16's precision, so that a file that stores them so holds the very model evaluated here."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
