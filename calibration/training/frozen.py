"""Frozen training: transfer learning as in the paper. The backbone stays as it is; each exit head learns alone.

The features come from the *deployed* segments, not from a torch copy of the backbone: so the heads learn on what they
will read in production, the final answers cannot change, and any imported ONNX graph can be given exits. One pass over
the data trains all heads at once, each with plain cross-entropy of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from artifacts import UsageError, to_plain
from artifacts.console import track
from calibration.data.datasets import Dataset
from calibration.tracing.all_exits import ModelChain
from calibration.training.checkpoints import History, record_epoch, resume_checkpoint, save_checkpoint
from calibration.training.minibatches import count_batches, epoch_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenConfig:
    """How to train exit heads on a frozen backbone.

    Attributes:
        epochs: passes over the train part.
        batch_size: samples per step.
        learning_rate: peak of AdamW's cosine schedule.
        weight_decay: of AdamW.
        crop_padding: pixels of zero padding for random crops; images are also mirrored at random.
        seed: decides initialisation, order and augmentation.
    """

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    crop_padding: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"--epochs {self.epochs}: expected at least 1")
        if self.batch_size < 2:
            raise UsageError(f"--train-batch-size {self.batch_size}: batch normalisation needs at least 2")


def train_frozen(
    heads: Mapping[str, nn.Module],
    chain: ModelChain,
    input_name: str,
    data: Dataset,
    config: FrozenConfig,
    checkpoint: Path,
    *,
    inputs: dict[str, str],
) -> History:
    """Trains ``heads`` in place.

    Args:
        heads: cut name -> head from features (B, ...) to logits (B, classes).
        chain: the deployed segments, opened for ``config.batch_size`` rows.
        input_name: the network's input that takes the images.
        data: the train part is trained on; the calibrate part is only measured, after every epoch.
        config: how.
        checkpoint: artifact folder for the state after every epoch; a matching one is continued.
        inputs: digests of everything else that the training depends on, for the checkpoint.

    Returns:
        Per epoch its number, phase, mean loss, seconds and the accuracy of every exit on the calibrate part.
    """
    net = nn.ModuleList(heads.values())
    optimiser = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    parameters = to_plain(config)
    history = resume_checkpoint(checkpoint, net, optimiser, inputs=inputs, parameters=parameters)
    steps = count_batches(data, config.batch_size)
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        net.train()
        total = 0.0
        batches = epoch_batches(
            data, batch_size=config.batch_size, crop_padding=config.crop_padding, seed=config.seed, epoch=epoch
        )
        for step, (images, labels) in enumerate(track(batches, description=f"epoch {epoch + 1}", total=steps)):
            progress = (epoch + (step + 0.5) / steps) / config.epochs
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            features = chain.features(chain.run({input_name: images}))
            target = torch.from_numpy(labels)
            losses = [
                functional.cross_entropy(head(torch.from_numpy(features[name])), target) for name, head in heads.items()
            ]
            loss = torch.stack(losses).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) / len(losses)
        accuracy = _measure(heads, chain, input_name, data, config.batch_size)
        seconds = time.monotonic() - started
        history = record_epoch(
            history, epochs=config.epochs, phase="frozen", loss=total / steps, seconds=seconds, accuracy=accuracy
        )
        save_checkpoint(checkpoint, net, optimiser, history, inputs=inputs, parameters=parameters)
    return history


def _measure(
    heads: Mapping[str, nn.Module], chain: ModelChain, input_name: str, data: Dataset, rows: int
) -> dict[str, float]:
    hits = dict.fromkeys(heads, 0)
    indices = data.split("calibrate")
    for head in heads.values():
        head.eval()
    with torch.inference_mode():
        for start in range(0, len(indices), rows):
            chunk = indices[start : start + rows]
            features = chain.features(chain.run({input_name: data.inputs(chunk)}))
            for name, head in heads.items():
                logits = head(torch.from_numpy(features[name]))
                hits[name] += int(np.sum(logits.argmax(1).numpy() == data.labels_of(chunk)))
    return {name: count / max(1, len(indices)) for name, count in hits.items()}
