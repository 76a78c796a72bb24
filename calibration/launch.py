"""Launch: which of the processes of one command this is, as ``torchrun`` and ``accelerate launch`` say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from artifacts import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One process among those that were started together.

    Attributes:
        rank: its number, from 0.
        count: how many there are, on all machines.
        here: how many of them are on this machine.
    """

    rank: int = 0
    count: int = 1
    here: int = 1

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Launch:
        """Reads ``RANK``, ``WORLD_SIZE`` and ``LOCAL_WORLD_SIZE``; without them a process is alone.

        Raises:
            UsageError: they are no numbers, or no such process can be.
        """
        words = {name: environment.get(name, usual) for name, usual in _VARIABLES.items()}
        try:
            rank, count, here = (int(word) for word in words.values())
        except ValueError:
            rank, count, here = -1, 0, 0
        if not 0 <= rank < count or here < 1:
            said = ", ".join(f"{name}={word}" for name, word in words.items())
            raise UsageError(
                f"{said} in the environment: no process is that; start several with torchrun, or unset them"
            )
        return cls(rank=rank, count=count, here=min(here, count))

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
ALONE = Launch()
