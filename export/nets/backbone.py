"""What a torch family provides: a network that tells its features."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


class Backbone(nn.Module):
    """A torch network that can be cut after its blocks."""

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the blocks in order, each under the prefix of its parameters."""
        raise NotImplementedError

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it, for every block; answer)."""
        raise NotImplementedError
