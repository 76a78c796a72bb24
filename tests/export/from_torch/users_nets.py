"""Modules and factories as users name them with torch:module:factory, right ones and wrong ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (3, 8, 8)
CLASSES = 5
NUMBER = 7


class Net(nn.Module):
    """Two convolutions and a linear layer; in training mode it drops half of its features."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, width, 3, stride=2), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.drop(self.body(self.stem(x)).flatten(1)))
        return answer


def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def half() -> nn.Module:
    return tiny().half()


def sized(width: int, depth: int, *, bias: bool = True) -> nn.Module:
    return Net(width)


def broken() -> nn.Module:
    raise KeyError("no such file of settings")


def number() -> int:
    return NUMBER


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), training=True)


class Named(Net):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


made = Net()
