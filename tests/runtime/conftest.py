"""A multi-exit network made of fakes whose confidences stand in its input, and what it must answer, row by row.

A row of the input ``x`` holds a number and one confidence per exit; ``mask`` travels along to every stage, and
``skip`` is written by the first stage and read by the last one alone. Every stage calls its answer and its
confidence by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from artifacts import BundleSpec, ExitPlan, GraphSpec, PlannedExit, PredictedLatency, StageSpec, TensorSpec
from engines import EngineSet, FakeEngine, HostDevice, plan_covers
from runtime import Runtime

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class StageEngines:
    """What the engine set of one stage looks like: its timed batch sizes, and whether others exist."""

    median_ms: Mapping[int, float]
    fixed: bool = False


@dataclass(kw_only=True)
class FakeNet:
    """A runtime over fakes and its reference."""

    thresholds: tuple[float, ...]
    max_batch_size: int = 8
    engines: Sequence[StageEngines] | None = None
    masked: bool = True
    faults: Mapping[int, Exception] = field(default_factory=dict)
    hook: Callable[[], None] | None = None
    check_finite: bool = True
    fakes: list[FakeEngine] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.thresholds) + 1

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        x = TensorSpec(name="x", dtype="float32", row_shape=(1 + self.depth,))
        return (x, TensorSpec(name="mask", dtype="bool", row_shape=(2,))) if self.masked else (x,)

    def graph(self, stage: int) -> GraphSpec:
        last = stage == self.depth - 1
        main = TensorSpec(name="x" if stage == 0 else f"h{stage}", dtype="float32", row_shape=(1 + self.depth,))
        skip = TensorSpec(name="skip", dtype="int64", row_shape=())
        answer = TensorSpec(name="answer", dtype="float32", row_shape=(2,))
        confidence = TensorSpec(name="confidence", dtype="float32", row_shape=())
        onward = (TensorSpec(name=f"h{stage + 1}", dtype="float32", row_shape=main.row_shape),)
        return GraphSpec(
            name=f"stage_{stage}",
            file=f"stage_{stage}.onnx",
            inputs=(main, *self.inputs[1:], *((skip,) if last and stage > 0 else ())),
            outputs=((() if last else onward) + ((skip,) if stage == 0 and not last else ()) + (answer, confidence)),
            confidence="confidence",
            answers=("answer",),
        )

    def compute(self, stage: int) -> Callable[[Values], Values]:
        def outputs(values: Values) -> Values:
            if self.hook is not None:
                self.hook()
            main = values["x" if stage == 0 else f"h{stage}"]
            mask = values["mask"].astype(np.float32) if self.masked else np.zeros((len(main), 2), np.float32)
            skipped = values["skip"].astype(np.float32) if "skip" in values else np.float32(0)
            first = main[:, 0] + mask[:, 0] + skipped
            onward = main.copy()
            onward[:, 0] += 1
            return {
                f"h{stage + 1}": onward,
                "skip": np.nan_to_num(main[:, 0]).astype(np.int64) * 2,
                "answer": np.stack([first, first * mask[:, 1] + np.float32(stage)], axis=1),
                "confidence": main[:, 1 + stage],
            }

        return outputs

    def spec(self) -> BundleSpec:
        thresholds = (*self.thresholds, None)
        exits = tuple(
            PlannedExit(cut=f"cut_{index}", threshold=threshold, leaving_share=0.1, metric=1.0, arrival_ms=1.0)
            for index, threshold in enumerate(self.thresholds)
        )
        return BundleSpec(
            name="fake",
            task="classification",
            backend="fake",
            threads=1,
            max_batch_size=self.max_batch_size,
            inputs=self.inputs,
            outputs=(TensorSpec(name="logits", dtype="float32", row_shape=(2,)),),
            stages=tuple(
                StageSpec(graph=self.graph(stage), engine=f"engines/{stage}", threshold=threshold, median_ms={"1": 1.0})
                for stage, threshold in enumerate(thresholds)
            ),
            plan=ExitPlan(
                model_digest="m", trace_digest="t", search="greedy", tolerance=0.01, delta=None,
                batch_size=self.max_batch_size, backend="fake", threads=1, exits=exits, full_metric=1.0,
                predicted_metric=1.0,
                predicted=PredictedLatency(full_ms=2.0, mean_ms=1.0, batch_ms=2.0, oracle_mean_ms=1.0),
            ),
        )  # fmt: skip

    def engine_sets(self) -> list[EngineSet]:
        made = []
        for stage in range(self.depth):
            chosen = StageEngines(median_ms={self.max_batch_size: 1.0}) if self.engines is None else self.engines[stage]
            fake = FakeEngine(
                self.graph(stage),
                max_batch_size=max(chosen.median_ms),
                batch_sizes=tuple(chosen.median_ms) if chosen.fixed else (),
                outputs=self.compute(stage),
                faults=self.faults if stage == self.depth - 1 else {},
            )
            self.fakes.append(fake)
            covers = plan_covers(chosen.median_ms, largest=self.max_batch_size, fixed=chosen.fixed)
            made.append(EngineSet(fake, covers))
        return made

    def open(self) -> Runtime:
        return Runtime(self.spec(), self.engine_sets(), HostDevice(), check_finite=self.check_finite)

    def batch(self, confidence: np.ndarray, *, mask: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Returns the inputs whose rows are 0, 1, 2 ... and have these confidences (B, depth) at the exits."""
        count = len(confidence)
        number = np.arange(count, dtype=np.float32)[:, None]
        x = np.concatenate([number, confidence.astype(np.float32)], axis=1)
        if not self.masked:
            return (x,)
        return (x, np.zeros((count, 2), np.bool_) if mask is None else mask)

    def answer_row(self, x: np.ndarray, mask: np.ndarray) -> tuple[int, np.float32, np.ndarray]:
        """Returns where one row leaves, its confidence and its answer: one row alone, in plain Python."""
        values = {"x": x[None], "mask": mask[None]}
        for stage, threshold in enumerate((*self.thresholds, None)):
            made = self.compute(stage)(values)
            confidence = made["confidence"][0]
            if threshold is None or confidence >= np.float32(threshold):
                return stage, confidence, made["answer"][0]
            values[f"h{stage + 1}"] = made[f"h{stage + 1}"]
            if stage == 0:
                values["skip_kept"] = made["skip"]
            if stage + 1 == self.depth - 1:
                values["skip"] = values["skip_kept"]
        raise AssertionError("the last stage lets everybody go")


@pytest.fixture(scope="session")
def fake_net() -> type[FakeNet]:
    return FakeNet


@pytest.fixture(scope="session")
def stage_engines() -> type[StageEngines]:
    return StageEngines
