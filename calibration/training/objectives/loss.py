"""Loss: how far an answer is from the right one, and from that of the full network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How far an answer is from the right one, and from that of the final head.

    Attributes:
        of_targets: (answers (B, ...), targets (B, ...)) -> a scalar.
        of_teacher: (logits, the final head's answer, temperature) -> a scalar; both softened.
    """

    of_targets: Callable[[Tensor, Tensor], Tensor]
    of_teacher: Callable[[Tensor, Tensor, float], Tensor]
