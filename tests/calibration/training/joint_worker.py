"""One of several processes that train a network without batch normalisation: ``python joint_worker.py FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from artifacts import Classification, to_plain
from calibration.data.arrays import ArrayImages, make_samples
from calibration.launch import Launch
from calibration.training.checkpoints import Checkpoint
from calibration.training.config import JointConfig
from calibration.training.end_to_end import train_joint
from calibration.training.processes import Processes
from export import MultiExitNet

CONFIG = JointConfig(
    epochs=2, backbone_epochs=1, batch_size=16, learning_rate=0.05, crop_padding=0, augment="none", accumulate=2
)  # fmt: skip


class Chain(nn.Module):
    """Two layers, with the features after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 2)

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.first(x.flatten(1)).relu()
        return {"first": features, "last": features}, self.last(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_features(x)[1]


def draw_samples() -> ArrayImages:
    """Returns bright and dark images in noise."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 112)
    images = (random.integers(0, 100, (112, 1, 8, 8)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    parts = {"train": np.arange(80), "calibrate": np.arange(80, 96), "test": np.arange(96, 112)}
    return make_samples("greys", images, labels, ("dark", "bright"), parts)


def train(folder: Path, config: JointConfig, processes: Processes | None) -> dict[str, Tensor]:
    """Trains from a fixed start and returns the tensors."""
    torch.manual_seed(0)
    net = MultiExitNet(Chain(), {"first": nn.Linear(8, 2)})
    checkpoint = Checkpoint(
        folder=folder / "checkpoint", inputs={}, parameters=to_plain(config), notes={}, report=lambda _: None
    )  # fmt: skip
    train_joint(net, draw_samples(), Classification(), config, checkpoint, processes=processes)
    return net.state_dict()


if __name__ == "__main__":
    place, launch = Path(sys.argv[1]), Launch.read(os.environ)
    with Processes("no", launch) as processes:
        save_file(train(place, CONFIG, processes), place / f"of-{launch.rank}.safetensors")
