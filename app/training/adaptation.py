"""Adapt a BERT to a domain: masked-language modelling on unlabelled text before fine-tuning.

Source: Gururangan et al. 2020, "Don't Stop Pretraining", arXiv:2004.10964.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoTokenizer, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer
from transformers.modeling_outputs import MaskedLMOutput
from transformers.trainer_utils import get_last_checkpoint

from app.inference.tokenizer import Tokenizer
from app.training.recipe import Adaptation
from app.training.trainer import TokenizedTexts, dropouts, training_arguments

_NOT_MASKED = -100  # what the collator writes


class _SparseMaskedLM(BertForMaskedLM):
    """Computes the vocabulary's logits at masked positions only; at all of them they cost half the encoder again."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> MaskedLMOutput:
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        masked = labels != _NOT_MASKED
        loss = functional.cross_entropy(self.cls(hidden[masked]).float(), labels[masked])
        return MaskedLMOutput(loss=loss)  # type: ignore[arg-type]  # typed as a FloatTensor


def adapt(base: Path, output: Path, texts: Sequence[str], *, settings: Adaptation, resume: bool) -> float:
    """Train the BERT in directory `base` to fill in masked pieces of `texts`, and write the encoder to `output`.

    Returns the mean loss over the last tenth of the training, in nats per masked piece.
    """
    tokenizer = Tokenizer(base / "tokenizer.json", max_tokens=settings.max_tokens, head_tokens=settings.max_tokens // 2)
    hugging_face_tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(settings.seed)  # the head starts at random
    model = _SparseMaskedLM.from_pretrained(base, **dropouts(settings))
    checkpoints = output / "checkpoints"
    trainer = Trainer(
        model=model,
        args=training_arguments(checkpoints, settings, save_strategy="steps", save_steps=0.1),
        train_dataset=TokenizedTexts(tokenizer, texts),
        data_collator=DataCollatorForLanguageModeling(
            hugging_face_tokenizer, mlm_probability=settings.masked_share, seed=settings.seed
        ),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if resume and checkpoints.is_dir() else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model.bert.save_pretrained(output)
    hugging_face_tokenizer.save_pretrained(output)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else float("nan")
