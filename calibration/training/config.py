"""Training configurations: frozen training of exit heads, and end-to-end training of backbone and exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from artifacts import TensorSpec, UsageError, name_token_inputs, to_plain, unknown_name

AUGMENTATIONS = ("none", "crop", "crop-mirror")
"""How images are varied in training. ``crop`` shifts them by a few pixels; a mirror image may be of another class."""
OPTIMISERS = ("sgd", "adamw")
PRECISIONS = ("no", "bf16", "fp16")
"""In what a training computes besides float32."""
ENOUGH_STEPS = 300
EPOCHS = (4, 100)
"""The fewest and the most epochs of frozen training, where their number is not given."""
VARIED_EPOCHS = 20
"""The most where images are varied, so that every epoch runs the backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenConfig:
    """How to train exit heads on a frozen backbone.

    Attributes:
        epochs: passes over the train part; ``None``: as many as make ``ENOUGH_STEPS`` steps, within ``EPOCHS``, and at
            most ``VARIED_EPOCHS`` where images are varied.
        batch_size: samples per step; fewer where the train part is small.
        learning_rate: peak of AdamW's cosine schedule.
        weight_decay: of AdamW.
        distillation: share of the divergence from the full network's answer in the loss; the rest is the task's loss.
            Without labels it is all of it.
        temperature: softens both answers in the divergence.
        augment: how images are varied, one of ``AUGMENTATIONS``; anything but ``none`` makes the backbone run over all
            samples in every epoch.
        crop_padding: pixels of zero padding for random crops.
        samples: how many of the train part are used; ``None``: all.
        max_candidates: how many exits an imported network gets at most.
        head_share: of the time behind a cut, what its exit head may take.
        seed: decides initialisation, order and augmentation.
        accumulate: in how many pieces a step's batch goes through, one after the other, for less memory.
        mixed_precision: one of ``PRECISIONS``.
    """

    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    distillation: float = 0.5
    temperature: float = 2.0
    augment: str = AUGMENTATIONS[0]
    crop_padding: int = 2
    samples: int | None = None
    max_candidates: int = 12
    head_share: float = 0.05
    seed: int = 0
    accumulate: int = 1
    mixed_precision: str = PRECISIONS[0]

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"--epochs {self.epochs}: expected at least 1")
        if self.max_candidates < 1:
            raise UsageError(f"--max-candidates {self.max_candidates}: expected at least 1")
        if not 0 < self.head_share <= 1:
            raise UsageError(f"--head-share {self.head_share:g}: expected a share above 0 and up to 1")
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"--distillation {self.distillation:g}: expected a share from 0 to 1")
        check_samples(self.samples)
        check_batch_size(self.batch_size)
        check_augmentation(self.augment)
        check_passes(self.accumulate, self.mixed_precision)

    def count_epochs(self, steps: int) -> int:
        """Returns how many epochs of so many steps are trained."""
        fewest, most = EPOCHS
        most = most if self.augment == AUGMENTATIONS[0] else VARIED_EPOCHS
        return self.epochs or max(fewest, min(most, -(-ENOUGH_STEPS // steps)))


@dataclass(frozen=True, slots=True, kw_only=True)
class JointConfig:
    """How to train backbone and exits together, end to end.

    Attributes:
        epochs: of both phases together.
        backbone_epochs: how many of them train the backbone alone.
        batch_size: samples per step.
        learning_rate: peak of the one-cycle schedule (a warm-up, then a cosine to zero).
        optimiser: one of ``OPTIMISERS``.
        warm_up: share of the training in which the learning rate rises.
        momentum: of SGD, in Nesterov's form.
        weight_decay: of SGD on every parameter, of AdamW on matrices alone.
        exit_weight: weight of all exits' losses together; the final head's is 1.
        distillation: share of the divergence in an exit's loss; the rest is the task's loss.
        temperature: softens both answers in the divergence.
        augment: how images are varied, one of ``AUGMENTATIONS``.
        crop_padding: pixels of zero padding for random crops.
        samples: how many of the train part are used; ``None``: all.
        seed: decides the order and the augmentation.
        given: the settings that the user named, where the others may follow the kind of the network (``fit``);
            ``None``: all are meant as they are.
        accumulate: in how many pieces a step's batch goes through, one after the other, for less memory.
        mixed_precision: one of ``PRECISIONS``.
    """

    epochs: int = 13
    backbone_epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    exit_weight: float = 3.0
    distillation: float = 0.5
    temperature: float = 3.0
    augment: str = AUGMENTATIONS[1]
    crop_padding: int = 2
    samples: int | None = None
    seed: int = 0
    accumulate: int = 1
    mixed_precision: str = PRECISIONS[0]
    optimiser: str = OPTIMISERS[0]
    warm_up: float = 0.2
    given: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_samples(self.samples)
        if self.optimiser not in OPTIMISERS:
            raise unknown_name("optimiser", self.optimiser, OPTIMISERS)
        if not 0 <= self.warm_up < 1:
            raise UsageError(f"--warm-up {self.warm_up:g}: expected a share from 0 and below 1")
        if not 0 <= self.backbone_epochs < self.epochs:
            raise UsageError(
                f"--epochs {self.epochs} with --backbone-epochs {self.backbone_epochs}: "
                "at least one epoch must train the exits"
            )
        check_batch_size(self.batch_size)
        check_augmentation(self.augment)
        check_passes(self.accumulate, self.mixed_precision)

    def fit(self, inputs: Sequence[TensorSpec], task: str) -> JointConfig:
        """Returns the configuration for the network at hand: those of tokens and of dense answers have defaults of
        their own.

        Raises:
            UsageError: the user named another optimiser than the usual one without a learning rate.
        """
        if self.given is None:
            return self
        if name_token_inputs([spec.name for spec in inputs]) is not None:
            usual = TOKEN_DEFAULTS
        else:
            usual = DENSE_DEFAULTS.get(task, {})
        expected = usual.get("optimiser", OPTIMISERS[0])
        if "optimiser" in self.given and "learning_rate" not in self.given and self.optimiser != expected:
            rate = usual.get("learning_rate", self.learning_rate)
            raise UsageError(
                f"--optimiser {self.optimiser}: the default rate of {rate:g} is for {expected}; name one for "
                f"{self.optimiser} with --learning-rate"
            )
        return replace(self, **{name: value for name, value in usual.items() if name not in self.given})


_LATER = ("accumulate", "mixed_precision", "optimiser", "warm_up")


def describe_training(config: FrozenConfig | JointConfig) -> dict[str, Any]:
    """Returns what artifacts record of a configuration, as plain values.

    What a later release added is left out at its default, so that what was trained before it is not trained again.
    """
    usual = {field.name: field.default for field in fields(config)}
    found: dict[str, Any] = to_plain(config)
    found.pop("given", None)
    return {name: value for name, value in found.items() if name not in _LATER or value != usual[name]}


def check_passes(accumulate: int, mixed_precision: str) -> None:
    """Raises ``UsageError`` for a number of pieces or a precision that cannot be."""
    if accumulate < 1:
        raise UsageError(f"--accumulate {accumulate}: expected at least 1")
    if mixed_precision not in PRECISIONS:
        raise unknown_name("mixed precision", mixed_precision, PRECISIONS)


TOKEN_DEFAULTS: Mapping[str, Any] = {
    "optimiser": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "warm_up": 0.1, "epochs": 3,
    "backbone_epochs": 0, "batch_size": 32, "temperature": 2.0, "augment": AUGMENTATIONS[0],
}  # fmt: skip
"""What a pretrained network of tokens is fine-tuned with: a few epochs in small steps."""
_DENSE: Mapping[str, Any] = {
    "epochs": 12, "backbone_epochs": 0, "distillation": 0.0, "augment": "crop-mirror"
}  # fmt: skip
DENSE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "segmentation": {**_DENSE, "batch_size": 8, "learning_rate": 0.002, "optimiser": "adamw"},
    "pose": {**_DENSE, "batch_size": 16, "learning_rate": 0.05},
}
"""What a network of dense answers on a pretrained trunk is fine-tuned with.

Nothing is distilled: the divergence from the final head counts every pixel alike, at a temperature of 3 three times as
much as the loss at the start, when that head is drawn at random, and drowns the weights of rare classes, which mIoU
counts as much as any.
"""


def check_batch_size(batch_size: int) -> None:
    """Raises ``UsageError`` for a batch that batch normalisation cannot do with."""
    if batch_size < 2:
        raise UsageError(f"--train-batch-size {batch_size}: batch normalisation needs at least 2")


def check_samples(samples: int | None) -> None:
    """Raises ``UsageError`` for a number of training samples that cannot be."""
    if samples is not None and samples < 1:
        raise UsageError(f"--samples {samples}: expected at least 1")


def check_augmentation(augment: str) -> None:
    """Raises ``UsageError`` for an augmentation that does not exist."""
    if augment not in AUGMENTATIONS:
        raise unknown_name("augmentation", augment, AUGMENTATIONS)
