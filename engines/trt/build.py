"""Building TensorRT engines, classic and RTX alike: one network, its profiles, serialised engines.

Precision is in the graph: networks are strongly typed, the only kind that TensorRT 11 supports. docs/adr/0006 explains
how engines are built.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts import EngineError, EngineKey, TensorSpec, write_json
from engines.build_progress import BuildWatch, PhaseTree
from engines.gpu.detection import find_gpu
from engines.identity.onnx_facts import read_interface_names, read_onnx_facts
from engines.options import BuildOptions
from engines.trt.files import PROFILES_JSON, EngineFiles, Profile, plan_profiles
from engines.trt.library import (
    PORTABLE_DEVICE,
    PRODUCTS,
    clean_message,
    error_text,
    identify_tensorrt,
    load_tensorrt,
    trt_logger,
)
from engines.trt.profiles import SEPARATE, TENSORRT, choose_batch_sizes, choose_profiles, engine_options
from engines.trt.timing_cache import stored_timings, timing_file

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_BUILDING = threading.Lock()  # TensorRT times kernels while it builds, and two builds would disturb each other's times


class TrtBuilder:
    """Compiles graphs for one flavour of TensorRT.

    Args:
        flavour: ``tensorrt``, or ``tensorrt-rtx``, which also builds without a GPU.
        options: what to build for.

    Raises:
        UsageError: no such profile layout.
    """

    def __init__(self, flavour: str, options: BuildOptions) -> None:
        self._flavour = flavour
        self._options = options
        self._profiles = choose_profiles(flavour, options.profiles)

    @property
    def backend(self) -> str:
        return self._flavour

    def key(self, onnx: Path) -> EngineKey:
        """Returns the key of the engine that ``build`` would make.

        Each batch size of the options gets a profile; without any, ``choose_batch_sizes`` chooses them.

        Args:
            onnx: the graph, its batch axis symbolic.

        Raises:
            UsageError: the batch sizes are out of range or do not go with the profile layout.
            EngineError: ``onnx`` is not an ONNX graph, or TensorRT has no GPU to build for.
        """
        sizes = choose_batch_sizes(self._profiles, self._options.batch_sizes, self._options.max_batch_size)
        facts, identity = read_onnx_facts(onnx), identify_tensorrt(self._flavour)
        if self._flavour == TENSORRT and find_gpu() is None:
            raise EngineError(
                "TensorRT builds for the GPU of the machine that it runs on, and this machine has none. Build on the "
                "machine that will serve, or, for GPUs that TensorRT-RTX targets, with --engine tensorrt-rtx"
            )
        return EngineKey(
            onnx_digest=facts.digest,
            backend=self._flavour,
            backend_version=identity.version,
            device=identity.device if self._flavour == TENSORRT else PORTABLE_DEVICE,
            precision=facts.precision,
            batch_sizes=sizes,
            max_batch_size=self._options.max_batch_size,
            options=engine_options(self._flavour, self._profiles),
            lengths=self._options.lengths,
        )

    def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
        """Writes one serialised engine, or one per batch size, and ``profiles.json`` into ``folder``.

        Raises:
            EngineError: TensorRT refuses the graph (the message names node, operator and reason), its interface does
                not fit, or the build was cancelled.
            KeyboardInterrupt: Ctrl-C; the build was ended first.
        """
        plans = plan_profiles(key, separate=self._profiles == SEPARATE)
        files = tuple(dict.fromkeys(profile.file for profile in plans))
        with _BUILDING, _deferred_interrupt() as interrupted:
            parsed = parse_network(self._flavour, onnx)
            inputs, outputs = _read_interface(parsed, onnx, key)
            activations = []
            for index, file in enumerate(files):
                ours = tuple(profile for profile in plans if profile.file == file)
                watch = self._options.watch.part(index, len(files))
                job = _Job(parsed=parsed, inputs=inputs, profiles=ours, watch=watch, interrupted=interrupted)
                activations.append(self._build_file(job, folder / file, key))
        record = EngineFiles(inputs=inputs, outputs=outputs, profiles=plans, activation_bytes=tuple(activations))
        write_json(folder / PROFILES_JSON, record)

    def _build_file(self, job: _Job, path: Path, key: EngineKey) -> int:
        """Builds one serialised engine and returns the activation memory that the builder reported."""
        parsed, (_, records) = job.parsed, trt_logger(self._flavour)
        config = _make_config(parsed, job)
        monitor = _make_monitor(parsed.trt, job)
        config.progress_monitor = monitor
        timings = None
        if self._flavour == TENSORRT and self._options.timings is not None:
            timings = timing_file(self._options.timings, version=key.backend_version, device=key.device)
        with records.record() as logged, stored_timings(config, timings):
            serialised = parsed.builder.build_serialized_network(parsed.network, config)
        if job.failures:
            raise job.failures[0]
        if job.interrupted.is_set():
            raise KeyboardInterrupt
        if job.watch.cancelled():
            raise EngineError(f"the build of {parsed.onnx.name} was cancelled; nothing was published")
        if serialised is None:
            raise EngineError(
                f"{_product(parsed)} failed to build {parsed.onnx}: {error_text(logged)}. "
                "Change the network at the node that is named, or build it with another --engine"
            )
        path.write_bytes(memoryview(serialised))
        found = [int(match[1]) for _, message in logged if (match := _ACTIVATIONS.search(message))]
        return max(found, default=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParsedNetwork:
    """A network as TensorRT's parser read it, with builder and parser, into both of which it points."""

    flavour: str
    trt: Any
    onnx: Path
    builder: Any
    network: Any
    parser: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    parsed: ParsedNetwork
    inputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    watch: BuildWatch
    interrupted: threading.Event
    failures: list[Exception] = field(default_factory=list)


def parse_network(flavour: str, onnx: Path) -> ParsedNetwork:
    """Parses an ONNX file.

    Raises:
        EngineError: the parser refuses it; the message has node, operator and reason of every error.
        MissingExtraError: the flavour is not installed.
    """
    trt, (logger, _) = load_tensorrt(flavour), trt_logger(flavour)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = ParsedNetwork(flavour=flavour, trt=trt, onnx=onnx, builder=builder, network=network, parser=parser)
    if not parser.parse_from_file(str(onnx)):
        errors = [_describe_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError(
            f"{_product(parsed)} cannot parse {onnx}: {'; '.join(errors) or 'it gave no reason'}. "
            "Change the network there, or build it with another --engine"
        )
    return parsed


def _product(parsed: ParsedNetwork) -> str:
    return f"{PRODUCTS[parsed.flavour]} {parsed.trt.__version__}"


def _describe_parser_error(parser_error: Any) -> str:
    reason = f"{clean_message(parser_error.desc())} ({parser_error.code().name})"
    if not parser_error.node_operator():
        return reason
    name = parser_error.node_name() or f"number {parser_error.node()}"
    return f"node '{name}', operator {parser_error.node_operator()}: {reason}"


def _read_interface(
    parsed: ParsedNetwork, onnx: Path, key: EngineKey
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns inputs and outputs as the parser saw them, after a check that they can be served in batches."""
    network = parsed.network
    longest = key.lengths[-1] if key.lengths else None
    inputs, outputs = (
        tuple(_describe_tensor(parsed, get(index), longest) for index in range(count))
        for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs))
    )
    expected = read_interface_names(onnx)
    for kind, specs, names in (("inputs", inputs, expected[0]), ("outputs", outputs, expected[1])):
        if {spec.name for spec in specs} != set(names):
            raise EngineError(
                f"{_product(parsed)} sees other {kind} in {onnx} ({', '.join(spec.name for spec in specs)}) than it "
                f"has ({', '.join(names)}): a tensor that is both an input and an output is renamed. "
                "Export the network again, so that no input is an output too"
            )
    for index in range(network.num_inputs):
        batch = network.get_input(index).shape[0]
        if batch not in (-1, *(key.batch_sizes if len(key.batch_sizes) == 1 else ())):
            raise EngineError(
                f"{onnx} cannot be built for {_show_sizes(key)}: the leading axis of its input "
                f"'{inputs[index].name}' is {batch}. Export it with a dynamic batch axis"
            )
    return inputs, outputs


def _describe_tensor(parsed: ParsedNetwork, tensor: Any, longest: int | None) -> TensorSpec:
    """Returns a tensor of the interface; an open axis behind the batch is ``longest``, where rows have lengths."""
    names = {
        parsed.trt.DataType.FLOAT: "float32", parsed.trt.DataType.HALF: "float16", parsed.trt.DataType.BOOL: "bool",
        parsed.trt.DataType.INT32: "int32", parsed.trt.DataType.INT64: "int64", parsed.trt.DataType.INT8: "int8",
        parsed.trt.DataType.UINT8: "uint8",
    }  # fmt: skip
    shape = tuple(tensor.shape)
    axes = tuple(axis for axis, size in enumerate(shape[1:]) if size < 0)
    if tensor.dtype not in names or not shape or (axes and longest is None):
        raise EngineError(
            f"{_product(parsed)}: tensor '{tensor.name}' of {parsed.onnx} has type {tensor.dtype.name} and shape "
            f"{shape}; expected a type that numpy has, and only the leading axis open. Export the network again with "
            "the shape of one row fixed"
        )
    row = tuple(longest or 0 if size < 0 else size for size in shape[1:])
    return TensorSpec(name=tensor.name, dtype=names[tensor.dtype], row_shape=row, length_axes=axes)


def _show_sizes(key: EngineKey) -> str:
    if key.batch_sizes:
        return f"batch sizes {', '.join(map(str, key.batch_sizes))}"
    return f"1 to {key.max_batch_size} rows"


def _make_config(parsed: ParsedNetwork, job: _Job) -> Any:
    trt = parsed.trt
    config = parsed.builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0
    if parsed.flavour != TENSORRT:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for profile in job.profiles:
        shapes = parsed.builder.create_optimization_profile()
        for spec in job.inputs:
            row = spec.at_length(profile.length).row_shape
            least, best, most = ((rows, *row) for rows in (profile.least, profile.best, profile.most))
            shapes.set_shape(spec.name, least, best, most)
        if config.add_optimization_profile(shapes) != profile.index:
            raise EngineError(
                f"{_product(parsed)} refuses the profile of {profile.least} to {profile.most} rows for {parsed.onnx}"
            )
    return config


def _make_monitor(trt: Any, job: _Job) -> Any:
    """Returns a progress monitor of TensorRT that reports to a watch.

    Its calls come from inside TensorRT, which no exception may cross: an exception of the watch ends the build, and is
    raised again after it.
    """
    tree = PhaseTree()

    def forward(phase: str, fraction: float) -> bool:
        try:
            job.watch.report(phase, fraction)
            return not (job.failures or job.interrupted.is_set() or job.watch.cancelled())
        except Exception as error:  # noqa: BLE001  # any error of the caller's own function
            job.failures.append(error)
            return False

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            forward(phase_name, tree.start(phase_name, parent_phase, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            forward(phase_name, tree.finish(phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            return forward(phase_name, tree.complete(phase_name, step))

    return Monitor()


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turns Ctrl-C into an event while TensorRT runs.

    A ``KeyboardInterrupt`` inside one of its callbacks would pass through C++, and one between them would wait for the
    end of the build. Only the main thread gets signals.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda _number, _frame: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
