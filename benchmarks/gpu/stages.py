"""Stages: the table of what is measured, most important first, with the time bound of each.

Standard library alone, as ``record``. The bounds of those that run unasked add up to less than nine minutes; together
with the budget of ``measure_all.sh`` they are sized for an H100 with 16 processor cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the measurement that runs in a process of its own.

    Attributes:
        letter: its name on the command line and of its JSON file.
        module: of ``benchmarks.gpu``; its ``measure(record, setting)`` does the work.
        title: a few words.
        bound_s: seconds after which it is cut off.
        on_request: runs only where it is named.
    """

    letter: str
    module: str
    title: str
    bound_s: int
    on_request: bool = False


STAGES = (
    Stage(letter="a", module="stage_tests", title="the GPU tests", bound_s=50),
    Stage(letter="b", module="stage_chain", title="the demo's chain on ONNX Runtime's CUDA provider", bound_s=50),
    Stage(letter="c", module="stage_rtx", title="TensorRT-RTX: refused or measured", bound_s=70),
    Stage(letter="d", module="stage_networks", title="ResNet-50 and BERT", bound_s=200),
    Stage(letter="e", module="stage_graphs", title="CUDA graphs on and off", bound_s=110),
    Stage(letter="f", module="stage_endurance", title="memory, threads, torch in the same context", bound_s=40),
    Stage(letter="g", module="stage_plan", title="plans made on this GPU", bound_s=100, on_request=True),
    Stage(letter="h", module="stage_torch", title="ResNet-50 and BERT in torch", bound_s=150, on_request=True),
)


CUDA_BACKEND = "onnxruntime-cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a stage runs.

    Attributes:
        scratch: a folder that all stages of a run share; gone afterwards.
        prebuilt: what was made ahead on a processor (``benchmarks.gpu.prepare``); ``None`` makes the stages do it.
        networks: the networks of stage d; ``()`` for its own choice.
        rehearsal: small sizes, on the fake CUDA driver or without any.
    """

    scratch: Path
    prebuilt: Path | None = None
    networks: tuple[str, ...] = ()
    rehearsal: bool = False

    @property
    def demos(self) -> tuple[tuple[str, float], ...]:
        """The small network of stages b, c, e and f in both precisions, each with the difference that is allowed."""
        name = "toy" if self.rehearsal else "demo"
        return ((name, 1e-3), (f"{name}-fp16", 2e-2))

    def choose(self, real: int, rehearsed: int) -> int:
        """Returns a size for a measurement, or the small one of a rehearsal."""
        return rehearsed if self.rehearsal else real


def find_stage(letter: str) -> Stage:
    """Returns a stage by its letter.

    Raises:
        SystemExit: there is none; names them all.
    """
    for stage in STAGES:
        if stage.letter == letter:
            return stage
    raise SystemExit(f"there is no stage '{letter}'; there are {', '.join(stage.letter for stage in STAGES)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints ``letter bound title`` of the stages that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.stages", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="letters, comma-separated")
    given = parser.parse_args(argv)
    letters = {find_stage(letter).letter for letter in given.only.split(",") if letter}
    for stage in STAGES:
        if stage.letter in letters or not (letters or stage.on_request):
            print(stage.letter, stage.bound_s, stage.title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
