"""Fine-tune a Hugging Face BERT on clean examples with the Hugging Face trainer. Knows nothing of ONNX or serving.

One linear layer carries both heads: its first columns are the logits of polarity, the others, if there are any, those
of emotion. So the model stays a plain `BertForSequenceClassification`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from app.domain.labels import Heads
from app.inference.bundle import Calibration
from app.inference.tokenizer import Tokenizer
from app.training.calibration import Certainty, calibration_error, certainty, fit_temperature
from app.training.data import Example
from app.training.recipe import FineTuning, Peft, Tokens
from app.training.trainer import TokenizedTexts, dropouts, training_arguments

CALIBRATION = "calibration.json"
_CERTAIN_ACCURACY = 0.95  # of the answers that are called certain, on the dev texts
_UNKNOWN = -100  # as target: not labelled; what PyTorch ignores by default
_LAYER = re.compile(r"\.layer\.(\d+)\.")


def fine_tune(
    base: Path,
    output: Path,
    train: Sequence[Example],
    dev: Sequence[Example],
    *,
    heads: Heads,
    tokens: Tokens,
    settings: FineTuning,
    soft: NDArray[np.float32] | None = None,
    soup: Sequence[Path] = (),
    resume: bool,
) -> dict[str, float]:
    """Fine-tune the BERT in directory `base`, write the best epoch's model to `output` and return its dev metrics.

    `base` is any directory that `BertForSequenceClassification.from_pretrained` takes and that has a `tokenizer.json`.
    `soft` (len(train), len(heads.labels)) are the probabilities that teachers give, NaN where they have no say. The
    weights of the models in the directories `soup` are averaged with those of the best epoch.
    Checkpoints and TensorBoard logs stand in `output/checkpoints`; with `resume` training goes on from the newest.
    """
    tokenizer = Tokenizer(base / "tokenizer.json", max_tokens=tokens.max_tokens, head_tokens=tokens.head_tokens)
    hugging_face_tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(settings.seed)  # the heads start at random
    model = BertForSequenceClassification.from_pretrained(
        base,
        num_labels=len(heads.columns),
        id2label=dict(enumerate(heads.columns)),
        label2id={label: index for index, label in enumerate(heads.columns)},
        classifier_dropout=settings.classifier_dropout,
        **dropouts(settings),
    )
    _freeze(model, settings.trainable_layers)
    targets = _targets(train, heads)
    checkpoints = output / "checkpoints"
    steps = -(-len(train) // (settings.batch_size * settings.gradient_accumulation)) * settings.epochs
    columns: dict[str, Sequence[object]] = {"labels": targets}
    if soft is not None:
        columns["soft"] = list(soft)
    dev_texts = TokenizedTexts(tokenizer, [example.text for example in dev], labels=_targets(dev, heads))
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(settings.patience)] if settings.patience else []
    trained = model if settings.peft is None else _with_peft(model, settings.peft, steps=int(steps))
    if settings.peft is not None and settings.peft.method == "adalora":
        callbacks.append(_RankAllocation(trained))
    trainer = _Trainer(
        model=trained,
        args=training_arguments(
            checkpoints,
            settings,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="macro_f1",
            label_names=["labels"],
        ),
        train_dataset=TokenizedTexts(tokenizer, [example.text for example in train], **columns),
        eval_dataset=dev_texts,
        data_collator=DataCollatorWithPadding(hugging_face_tokenizer),
        compute_metrics=lambda prediction: _metrics(prediction, heads),
        callbacks=callbacks,
        settings=settings,
        polarities=len(heads.labels),
        label_weights=_label_weights(targets, len(heads.labels)) if settings.balanced_labels else None,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if resume and checkpoints.is_dir() else None)
    if settings.peft is not None:
        model = trainer.model = trainer.model.merge_and_unload()
    _average(model, soup)
    answers = trainer.predict(dev_texts)
    calibration = _calibrate(model, np.asarray(answers.predictions), np.asarray(answers.label_ids), heads)
    _round_weights_to_half(model)
    metrics = trainer.evaluate()
    model.save_pretrained(output)
    hugging_face_tokenizer.save_pretrained(output)
    (output / CALIBRATION).write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return {name: float(value) for name, value in metrics.items()}


class _Trainer(Trainer):
    """The Hugging Face trainer with the losses of two heads, teachers, FGM and R-Drop, and rates by layer."""

    model: Any  # a BertForSequenceClassification, with peft around it or not

    def __init__(
        self, *, settings: FineTuning, polarities: int, label_weights: torch.Tensor | None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._settings = settings
        self._polarities = polarities
        self._label_weights = label_weights

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Give each parameter the rate of its layer; norms and biases have no weight decay."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            top = self.model.config.num_hidden_layers
            groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    rate = self._settings.layer_decay ** (top - _depth(name, top))
                    groups.setdefault((rate, name in decayed), []).append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(
                [
                    {
                        "params": parameters,
                        "lr": self.args.learning_rate * rate,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (rate, decays), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # the trainer's signature
        num_items_in_batch: torch.Tensor | None = None,  # noqa: ARG002
    ) -> Any:
        """Return the mean loss of the texts of a batch."""
        labels, soft = inputs["labels"], inputs.get("soft")
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model(**texts)
        logits = output.logits.float()
        loss = self._loss(logits, labels, soft)
        if self._settings.r_drop and model.training:
            again = model(**texts).logits.float()
            loss = (loss + self._loss(again, labels, soft)) / 2
            loss = loss + self._settings.r_drop * self._divergence(logits, again)
        loss = loss.mean()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Add, with FGM, the gradient at word embeddings that moved to where the loss grows fastest."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self._settings.fgm:
            words = self.model.get_input_embeddings().weight
            if (length := words.grad.norm()) > 0:
                before = words.detach().clone()
                words.data.add_(words.grad, alpha=self._settings.fgm / float(length))
                super().training_step(model, inputs, num_items_in_batch)
                words.data.copy_(before)
        return loss

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of each text (B)."""
        polarity, emotion = logits[:, : self._polarities], logits[:, self._polarities :]
        loss = functional.cross_entropy(
            polarity,
            labels[:, 0],
            weight=None if self._label_weights is None else self._label_weights.to(logits.device),
            label_smoothing=self._settings.label_smoothing,
            reduction="none",
        )
        if soft is not None and self._settings.distillation is not None:
            taught = ~soft[:, 0].isnan()
            teaching = functional.cross_entropy(polarity, soft.nan_to_num(0), reduction="none")
            share = taught * torch.where(labels[:, 0] == _UNKNOWN, 1.0, self._settings.distillation.weight)
            loss = (1 - share) * loss + share * teaching
        if emotion.shape[1]:
            loss = loss + self._settings.emotion_weight * functional.cross_entropy(
                emotion, labels[:, 1], reduction="none"
            )
        return loss

    def _divergence(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return, for each text (B), the symmetric divergence of two answers, summed over the heads."""
        total = torch.zeros(len(one), device=one.device)
        for columns in (slice(self._polarities), slice(self._polarities, one.shape[1])):
            a, b = one[:, columns].log_softmax(dim=1), other[:, columns].log_softmax(dim=1)
            total = total + ((a.exp() - b.exp()) * (a - b)).sum(dim=1) / 2
        return total


class _RankAllocation(TrainerCallback):
    """Tell AdaLoRA of each step: until `tfinal` steps from the end it drops singular values, then they stay dropped.

    Its own method for this resizes what checkpoints store, which the best of them then fails to load.
    """

    def __init__(self, model: Any) -> None:
        self._tuner = model.base_model
        self._last_step = model.active_peft_config.total_step - model.active_peft_config.tfinal
        self._values = [values for name, values in model.named_parameters() if ".lora_E." in name]
        self._dropped: list[torch.Tensor] = []

    def on_step_begin(self, args: object, state: TrainerState, control: object, **_: Any) -> None:  # noqa: ARG002
        """Note what is dropped once nothing more will be."""
        if state.global_step >= self._last_step and not self._dropped:
            self._dropped = [values.detach() == 0 for values in self._values]

    def on_optimizer_step(self, args: object, state: TrainerState, control: object, **_: Any) -> None:  # noqa: ARG002
        """Drop by the gradients of this step, or hold what was dropped."""
        if state.global_step < self._last_step:
            self._tuner.rankallocator.update_and_allocate(self._tuner.model, state.global_step)
        for values, dropped in zip(self._values, self._dropped, strict=False):
            values.data.masked_fill_(dropped, 0.0)


def _depth(parameter: str, top: int) -> int:
    """Return how many layers stand below and at the layer of `parameter`; the heads count with the top one."""
    if found := _LAYER.search(parameter):
        return int(found[1]) + 1
    return 0 if ".embeddings." in parameter else top


def _freeze(model: BertForSequenceClassification, trainable_layers: int | None) -> None:
    """Leave only the heads, the pooler and the top `trainable_layers` layers trainable; None: everything."""
    if trainable_layers is None:
        return
    layers = model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        head = ".encoder." not in name and ".embeddings." not in name
        parameter.requires_grad = head or _depth(name, layers) > layers - trainable_layers


def _with_peft(model: BertForSequenceClassification, settings: Peft, *, steps: int) -> torch.nn.Module:
    task: dict[str, Any] = {"task_type": peft.TaskType.SEQ_CLS, "modules_to_save": ["pooler.dense", "classifier"]}
    attention = ["query", "key", "value", "attention.output.dense"]
    config: peft.PeftConfig
    match settings.method:
        case "lora":
            config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=attention, **task)
        case "adalora":
            config = peft.AdaLoraConfig(
                init_r=settings.rank, target_r=max(1, settings.rank // 2), lora_alpha=settings.alpha, tinit=steps // 10,
                tfinal=steps // 2, total_step=steps, target_modules=attention, **task,
            )  # fmt: skip
        case "ia3":
            # The paper scales what enters the second matrix of the feed-forward part. By expression, as attention's
            # own output has the same last name.
            wide = r".*\.layer\.\d+\.output\.dense"
            config = peft.IA3Config(
                target_modules=rf"{wide}|.*\.attention\.self\.(key|value)", feedforward_modules=wide, **task
            )
    return peft.get_peft_model(model, config)


def _targets(examples: Sequence[Example], heads: Heads) -> list[tuple[int, int]]:
    labels = {label: index for index, label in enumerate(heads.labels)}
    emotions = {emotion: index for index, emotion in enumerate(heads.emotions)}
    return [
        (labels.get(example.label or "", _UNKNOWN), emotions.get(example.emotion or "", _UNKNOWN))
        for example in examples
    ]


def _label_weights(targets: Sequence[tuple[int, int]], labels: int) -> torch.Tensor:
    given = np.array([label for label, _ in targets if label != _UNKNOWN])
    present = np.unique(given)
    weights = np.ones(labels, np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=given)
    return torch.from_numpy(weights)


def _calibrate(
    model: BertForSequenceClassification, logits: NDArray[np.float32], labels: NDArray[np.int64], heads: Heads
) -> Calibration:
    """Divide the columns of each head by its temperature, in the model itself; return what that did."""
    names = ("polarity", "emotion")
    temperatures: dict[str, float] = {}
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    certain = Certainty(0.0, 1.0, 0.0)
    end = 0
    for name, size, expected in zip(names, heads.sizes, labels.T, strict=False):
        start, end = end, end + size
        known = expected != _UNKNOWN
        if not known.any():
            continue
        raw = logits[known, start:end].astype(np.float64)
        temperatures[name] = round(fit_temperature(raw, expected[known]), 4)
        probabilities = softmax(raw / temperatures[name], axis=1)
        before[name] = round(calibration_error(softmax(raw, axis=1), expected[known]), 4)
        after[name] = round(calibration_error(probabilities, expected[known]), 4)
        if name == "polarity":
            certain = certainty(probabilities, expected[known], _CERTAIN_ACCURACY)
        with torch.no_grad():
            model.classifier.weight[start:end] /= temperatures[name]
            model.classifier.bias[start:end] /= temperatures[name]
    return Calibration(
        temperatures=temperatures,
        error_before=before,
        error_after=after,
        threshold=certain.threshold,
        certain_share=round(certain.share, 4),
        certain_accuracy=round(certain.accuracy, 4),
    )


def _metrics(prediction: EvalPrediction, heads: Heads) -> dict[str, float]:
    labels = np.asarray(prediction.label_ids)
    logits = np.asarray(prediction.predictions)
    found = {}
    heads_columns = {"": slice(len(heads.labels)), "emotion_": slice(len(heads.labels), len(heads.columns))}
    for head, (prefix, columns) in enumerate(heads_columns.items()):
        known = labels[:, head] != _UNKNOWN
        if columns.start != columns.stop and known.any():
            expected, given = labels[known, head], logits[known, columns].argmax(axis=1)
            found[f"{prefix}accuracy"] = float(accuracy_score(expected, given))
            found[f"{prefix}macro_f1"] = float(f1_score(expected, given, average="macro"))
    return found


def _average(model: BertForSequenceClassification, others: Sequence[Path]) -> None:
    """Make each weight of `model` the mean over it and the models in `others`."""
    states = [BertForSequenceClassification.from_pretrained(directory).state_dict() for directory in others]
    with torch.no_grad():
        for name, weights in model.state_dict().items():
            for state in states:
                weights.add_(state[name].to(weights.device))
            weights.div_(1 + len(states))


def _round_weights_to_half(model: torch.nn.Module) -> None:
    """Round weights to float16's precision, so that a file that stores them so holds the very model evaluated here."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
