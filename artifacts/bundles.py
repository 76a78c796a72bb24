"""Bundles: the self-contained folder that a production host loads, its stages and the keys of its engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from artifacts.codec import OPTIONAL
from artifacts.graphs import GraphSpec, SequenceSpec, TensorSpec
from artifacts.images.preprocessing import Preprocessing
from artifacts.plans import ExitPlan
from artifacts.text.preprocessing import TextPreprocessing

BUNDLE_JSON = "bundle.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that an engine depends on; two engines with equal keys are interchangeable.

    Attributes:
        onnx_digest: SHA-256 of the graph that was compiled.
        backend: e.g. ``onnxruntime``.
        backend_version: the exact version.
        device: the device and driver, or the processor and its instruction sets.
        precision: of the graph, e.g. ``float32``.
        batch_sizes: the fixed batch sizes, or () for any up to ``max_batch_size``.
        max_batch_size: the largest batch.
        options: build options by name.
        lengths: the lengths of rows that it takes; empty where its rows have one shape.
    """

    onnx_digest: str
    backend: str
    backend_version: str
    device: str
    precision: str
    batch_sizes: tuple[int, ...]
    max_batch_size: int
    options: Mapping[str, str]
    lengths: tuple[int, ...] = field(default=(), metadata=OPTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One stage of a bundle: its graph, its engine, and the rule by which rows leave after it.

    Attributes:
        graph: the merged ONNX graph; its file lies in the bundle.
        engine: POSIX path of the engine's folder in the bundle, with the engine's own manifest.
        threshold: rows with at least this confidence leave; ``None`` for the last stage, where all leave.
        median_ms: batch size -> measured time of the engine, for ``EngineSet.cover``; at the largest length.
        shorter_ms: length -> the same for rows of that length, for every length but the largest.
    """

    graph: GraphSpec
    engine: str
    threshold: float | None
    median_ms: Mapping[str, float]
    shorter_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict, metadata=OPTIONAL)

    def at_length(self, length: int) -> StageSpec:
        """Returns the stage as it is where rows are ``length`` long."""
        median_ms = self.shorter_ms.get(str(length), self.median_ms)
        return replace(self, graph=self.graph.at_length(length), median_ms=median_ms, shorter_ms={})


@dataclass(frozen=True, slots=True, kw_only=True)
class OneGraphSpec:
    """All stages of a bundle as one graph, thresholds included, and its engine.

    Attributes:
        graph: the network's inputs; its outputs, then one int64 per row, the position of the exit at which it left, and
            the confidence. Its file lies in the bundle.
        engine: POSIX path of the engine's folder in the bundle, with the engine's own manifest.
    """

    graph: GraphSpec
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """The contents of ``bundle.json``.

    Attributes:
        name: the run's name.
        task: the name of the task; the runtime looks it up and imports nothing for it.
        backend: of all engines.
        threads: of each engine.
        max_batch_size: larger batches are split.
        inputs, outputs: of the whole network, in their order.
        stages: in the order of the data flow.
        plan: the exit plan that the stages follow.
        settings: the model's settings, for the record.
        preprocessing: how the network wants its images; ``None`` where that is not recorded or the input is not an
            image.
        sequence: the lengths of its rows; ``None`` where all rows have one shape.
        text: how the network wants its texts; ``None`` where it takes something else, or no tokenizer is known. The
            tokenizer lies in the bundle.
        classes: names of the classes that it tells apart, in the order of its answers; none where they are not known.
        one_graph: all stages as one graph, which ``Runtime.run`` sends whole batches through; ``None``: stage by stage.
    """

    name: str
    task: str
    backend: str
    threads: int
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[StageSpec, ...]
    plan: ExitPlan
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    text: TextPreprocessing | None = field(default=None, metadata=OPTIONAL)
    sequence: SequenceSpec | None = field(default=None, metadata=OPTIONAL)
    classes: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    one_graph: OneGraphSpec | None = field(default=None, metadata=OPTIONAL)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that its rows may have; none where all rows have one shape."""
        return () if self.sequence is None else self.sequence.lengths

    def at_length(self, length: int) -> BundleSpec:
        """Returns the bundle as it is where rows are ``length`` long; all its shapes are fixed then."""
        return replace(
            self,
            inputs=tuple(tensor.at_length(length) for tensor in self.inputs),
            outputs=tuple(tensor.at_length(length) for tensor in self.outputs),
            stages=tuple(stage.at_length(length) for stage in self.stages),
            sequence=None,
        )
