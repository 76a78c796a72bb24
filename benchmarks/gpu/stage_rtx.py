"""Stage c: TensorRT-RTX on this GPU: taken or refused, in its own words; built ahead, built here, measured.

Its libraries name compute capabilities 7.5, 8.0, 8.6, 8.9 and from 12.0, so a Hopper GPU (9.0) should be refused. What
is refused at one point is tried at the next all the same: every message is a row. TensorRT proper is measured likewise
where it is installed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from artifacts import EngineError, read_json
from benchmarks.gpu.nets.making import ensure_subject
from benchmarks.gpu.nets.subjects import Subject
from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.chain import Job, measure_chain
from benchmarks.gpu.rows.times import add_time_matrix
from benchmarks.gpu.stages import Setting
from engines import BuildOptions, builder, fixed_batch_sizes

RTX, CLASSIC = "tensorrt-rtx", "tensorrt"
SIZES = (1, 8, 16, 32)
BUILT = "rtx"


def measure(record: Record, setting: Setting) -> None:
    """Asks the library, then builds, opens what was built ahead, and measures the chain in both precisions."""
    for flavour in (RTX, *([CLASSIC] if importlib.util.find_spec("tensorrt") else [])):
        if record.attempt(f"{flavour}: load and identify", partial(_identify, flavour)) is None:
            continue
        if flavour == RTX:
            _open_files(record, "built ahead", setting.prebuilt)
        for name, tolerance in setting.demos:
            subject = record.attempt(f"{name}: get", partial(ensure_subject, name, setting))
            if subject is None:
                continue
            _build(record, subject, flavour, setting.scratch)
            job = Job(record=record, setting=setting, subject=subject, backend=flavour,
                      max_batch_size=setting.choose(32, 8))  # fmt: skip
            measure_chain(job, tolerance=tolerance)
            add_time_matrix(job, SIZES, needs_s=setting.choose(8, 1))
        if flavour == RTX:
            _open_files(record, "built here", setting.scratch)
            record.attempt(f"{flavour}: run without vetting", partial(_run_unvetted, setting))


def _identify(flavour: str) -> dict[str, Any]:
    from engines.backends.opening import identify_backend
    from engines.gpu.detection import find_gpu
    from engines.trt.library import is_portable_target

    identity, gpu = identify_backend(flavour), find_gpu()
    target = None if gpu is None else is_portable_target(gpu)
    return {
        "version": identity.version, "device": identity.device, "gpu": None if gpu is None else gpu.description,
        "among_the_targets_of_portable_engines": target,
    }  # fmt: skip


def _build(record: Record, subject: Subject, flavour: str, scratch: Path) -> None:
    """Builds the whole network and every stage, each a row: seconds and bytes, or the builder's own words."""
    for graph in (subject.spec.full, *subject.spec.stages):
        keep = scratch / BUILT / f"{subject.name}-{graph.name}" if flavour == RTX else None
        build = partial(build_once, subject.folder / graph.file, flavour, keep=keep)
        record.attempt(f"{flavour}: build {subject.name} {graph.name}", build, needs_s=3)


def build_once(onnx: Path, flavour: str, *, keep: Path | None = None, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Builds a graph's engine files; returns seconds and bytes.

    Args:
        onnx: the graph.
        flavour: of TensorRT.
        keep: a folder for the files; they are thrown away without one.
        sizes: the batch sizes.
    """
    wanted = BuildOptions(max_batch_size=max(sizes), batch_sizes=tuple(sizes))
    made_by = builder(flavour, replace(wanted, batch_sizes=fixed_batch_sizes(flavour, wanted)))
    key = made_by.key(onnx)
    with tempfile.TemporaryDirectory(prefix="pame-") as scratch:
        folder = Path(scratch) if keep is None else keep
        folder.mkdir(parents=True, exist_ok=True)
        started = perf_counter()
        made_by.build(onnx, folder, key)
        files = list(folder.glob("*.trt"))
        return {
            "build_s": round(perf_counter() - started, 3), "bytes": sum(path.stat().st_size for path in files),
            "built_for": key.device,
        }  # fmt: skip


def _open_files(record: Record, how: str, folder: Path | None) -> None:
    """Deserialises engine files, each a row."""
    files = sorted((folder / BUILT).rglob("*.trt")) if folder is not None else []
    if not files:
        record.add(f"tensorrt-rtx: engines {how}", skipped="there are none (see benchmarks.gpu.prepare)")
    for file in files:
        record.attempt(f"tensorrt-rtx: {file.parent.name}, {how}", partial(_deserialise, file))


def _deserialise(file: Path) -> dict[str, Any]:
    """Asks the library for its verdict on a file's header, then for the engine and an execution context of it."""
    from engines import open_device
    from engines.trt.library import deserialise_engine, load_tensorrt, trt_logger
    from engines.trt.vetting import name_diagnostics

    device = open_device(RTX)
    try:
        trt, (logger, _) = load_tensorrt(RTX), trt_logger(RTX)
        runtime = trt.Runtime(logger)
        validity, diagnostics = runtime.get_engine_validity(file.read_bytes()[: runtime.engine_header_size])
        verdict = {"validity": str(validity), "diagnostics": name_diagnostics(trt, diagnostics)}
        started = perf_counter()
        try:
            engine = deserialise_engine(RTX, runtime, file)
        except EngineError as error:
            raise EngineError(f"{error} Its verdict on the header: {verdict}") from error
        opened_s = round(perf_counter() - started, 3)
        return {**verdict, "deserialise_s": opened_s, "context": engine.create_execution_context() is not None}
    finally:
        device.close()


def _run_unvetted(setting: Setting) -> dict[str, Any]:
    """Runs the smallest stage whatever our own checks say of this GPU, and compares with the processor."""
    from engines import DeviceOptions, ensure_engine, open_device, run_graph
    from engines.identity.keys import open_key
    from engines.trt.files import PROFILES_JSON, EngineFiles
    from engines.trt.run import open_trt_engine

    subject = ensure_subject(setting.demos[0][0], setting)
    graph, rows = subject.spec.stages[0], 8
    onnx = subject.folder / graph.file
    options = BuildOptions(max_batch_size=rows)
    folder = ensure_engine(onnx, graph, setting.scratch / "unvetted", backend=RTX, options=options)
    artifact, key = open_key(folder)
    device: Any = open_device(RTX, DeviceOptions(cuda_graphs=False))
    try:
        files = read_json(artifact.path(PROFILES_JSON), EngineFiles)
        engine = open_trt_engine(folder, key, graph, files, device=device)
        buffers = {spec.name: device.allocate(spec, rows) for spec in (*graph.inputs, *graph.outputs)}
        batch = subject.batch(rows)
        for name, array in batch.items():
            device.upload(array, buffers[name])
        engine.bind(buffers)()
        found = device.download(buffers[graph.answers[0]], range(rows))
        wanted = run_graph(onnx, batch)[graph.answers[0]]
        return {"worst_difference": float(abs(found - wanted).max())}
    finally:
        device.close()
