"""Stage e: the chain as one CUDA graph, then graphs on and off, and what of ONNX Runtime's work can be captured.

A chain that runs as one graph needs stages that can be captured. TensorRT's can; about ONNX Runtime's CUDA provider
two rows decide: its own switch (``enable_cuda_graph``), and a capture of ours around one of its runs.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.environment import load_cuda_libraries
from benchmarks.gpu.nets.making import ensure_subject
from benchmarks.gpu.nets.subjects import EXITS, STAY, SUBJECT_JSON, Subject, open_subject, time_in_turns
from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.chain import Job, host_answers
from benchmarks.gpu.rows.one_graph import add_one_graph_rows, time_captured
from benchmarks.gpu.stages import CUDA_BACKEND, Setting

NETWORKS = ("resnet50", "bert")  # where stage d has made them
BACKENDS = (CUDA_BACKEND, "tensorrt-rtx", "tensorrt")


def measure(record: Record, setting: Setting) -> None:
    """Measures the demo on every backend, then tries to capture what ONNX Runtime enqueues."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":0:0")  # read when cuBLAS is loaded, below
    record.attempt("CUDA libraries", load_cuda_libraries)
    record.attempt("driver and cuda-core", _describe_graphs)
    name = setting.demos[0][0]
    subject = record.attempt(f"{name}: get", partial(ensure_subject, name, setting))
    if subject is None:
        return
    job = Job(record=record, setting=setting, subject=subject, backend=CUDA_BACKEND,
              max_batch_size=setting.choose(32, 8))  # fmt: skip
    add_one_graph_rows(job, (job.max_batch_size, setting.choose(8, 2)))
    for backend in BACKENDS:
        job = Job(record=record, setting=setting, subject=subject, backend=backend,
                  max_batch_size=setting.choose(32, 8))  # fmt: skip
        record.attempt(f"{job.name}: graphs on and off", partial(_compare, job), needs_s=setting.choose(6, 1))
    for size in (setting.choose(32, 8), 1):
        capture = partial(time_captured, subject, subject.spec.full, setting, CUDA_BACKEND, size)
        record.attempt(f"{name}: a run of {CUDA_BACKEND} captured by us, batch {size}", capture)
    for large in NETWORKS:
        if (setting.scratch / large / SUBJECT_JSON).is_file():
            made = open_subject(setting.scratch / large)
            job = Job(record=record, setting=setting, subject=made, backend=CUDA_BACKEND, max_batch_size=32)
            add_one_graph_rows(job, (32,))
    own = partial(_own_graphs_of_onnxruntime, subject, setting.choose(32, 8))
    record.attempt(f"{name}: onnxruntime's own CUDA graph", own)


def _describe_graphs() -> dict[str, Any]:
    """Returns the CUDA version of the driver (conditional nodes: IF 12.3, SWITCH 12.8) and what cuda-core offers."""
    from engines.gpu.driver import call

    call("cuInit", 0)
    version = int(call("cuDriverGetVersion"))
    found: dict[str, Any] = {"driver_cuda": f"{version // 1000}.{version % 1000 // 10}"}
    try:
        from cuda.core.graph import GraphBuilder
    except ImportError as error:
        return {**found, "cuda_core": f"no graph builder: {error}"}
    wanted = ("create_condition", "if_then", "if_else", "while_loop", "switch")
    return {**found, "cuda_core": {verb: hasattr(GraphBuilder, verb) for verb in wanted}}


def _compare(job: Job) -> dict[str, Any]:
    batch = job.subject.batch(job.max_batch_size)
    with ExitStack() as stack:
        runtimes = {
            f"{way}, graphs {'on' if graphs else 'off'}": job.open(stack, ways=(way,), cuda_graphs=graphs)[way]
            for way in (EXITS, STAY)
            for graphs in (True, False)
        }
        answers = {name: host_answers(runtime.run(batch)) for name, runtime in runtimes.items()}
        on, off = answers[f"{EXITS}, graphs on"], answers[f"{EXITS}, graphs off"]
        rounds, budget_s = job.setting.choose(300, 3), job.setting.choose(4, 1)
        times = time_in_turns(
            {name: runtime.run for name, runtime in runtimes.items()}, batch, rounds=rounds, budget_s=budget_s
        )
        engine_ms = {name: runtime.run(batch).engine_ms for name, runtime in runtimes.items()}
    return {"ways": times, "engine_ms": engine_ms, "answers_equal": bool(np.array_equal(on, off))}


def _own_graphs_of_onnxruntime(subject: Subject, size: int) -> dict[str, Any]:
    """Times sessions with and without ``enable_cuda_graph`` over arrays that stay on the GPU."""
    import onnxruntime

    path = subject.folder / subject.spec.full.file
    serves = {f"graphs {'on' if on else 'off'}": _own_session(onnxruntime, path, subject, size, on=on)
              for on in (False, True)}  # fmt: skip
    return {"ways": time_in_turns(serves, {}, rounds=200, budget_s=3)}


def _own_session(onnxruntime: Any, path: Path, subject: Subject, size: int, *, on: bool) -> Any:
    options = {"enable_cuda_graph": str(int(on)), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} has no {provider}")
    session = onnxruntime.InferenceSession(str(path), providers=[(provider, options)])
    binding = session.io_binding()
    for name, array in subject.batch(size).items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for spec in subject.spec.full.outputs:
        empty = np.zeros((size, *spec.row_shape), spec.dtype)
        binding.bind_ortvalue_output(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(empty, "cuda", 0))
    return lambda _: session.run_with_iobinding(binding)
