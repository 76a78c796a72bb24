"""Rows of torch: the same networks, eager, as CUDA graphs and compiled, from host arrays to host answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.gpu.nets.making import torch_module
from benchmarks.gpu.nets.subjects import Batch, Subject, time_in_turns
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import Setting


def add_torch_rows(record: Record, subject: Subject, setting: Setting, sizes: Sequence[int], *, compiled: bool) -> None:
    """Adds a row per batch size: eager and torch's own CUDA graphs, or compiled, which takes its time first."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    if where == "cpu" and not setting.rehearsal:
        record.add(f"{subject.name} in torch", error=f"torch {torch.__version__} sees no GPU")
        return
    for size in sizes if not compiled else sizes[:1]:
        record.attempt(
            f"{subject.name} in torch{', compiled' if compiled else ''}, {where}, batch {size}",
            partial(_time, torch, subject, setting, size, where, compiled=compiled),
            needs_s=setting.choose(30 if compiled else 4, 1),
        )


def _time(torch: Any, subject: Subject, setting: Setting, size: int, where: str, *, compiled: bool) -> dict[str, Any]:
    module, batch = torch_module(subject, rehearsal=setting.rehearsal).to(where), subject.batch(size)
    serves: dict[str, Callable[[Batch], object]] = {}
    if not compiled:
        serves["eager"] = _serve(torch, module, where)
        if where == "cuda":
            serves["CUDA graph"] = _serve_graph(torch, module, batch)
    elif where == "cuda":
        serves["compiled"] = _serve(torch, torch.compile(module), where)
    tf32 = bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    times = time_in_turns(serves, batch, rounds=setting.choose(100, 3), budget_s=setting.choose(2, 1))
    return {"ways": times, "tf32": tf32}


def _serve(torch: Any, net: Callable[..., Any], where: str) -> Callable[[Batch], object]:
    def answer(batch: Batch) -> object:
        with torch.inference_mode():
            inputs = [torch.from_numpy(array).to(where, non_blocking=True) for array in batch.values()]
            return net(*inputs).cpu()

    return answer


def _serve_graph(torch: Any, module: Any, batch: Batch) -> Callable[[Batch], object]:
    inputs = [torch.from_numpy(array).to("cuda") for array in batch.values()]
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(*inputs)

    def answer(batch: Batch) -> object:
        with torch.inference_mode():
            for target, array in zip(inputs, batch.values(), strict=True):
                target.copy_(torch.from_numpy(array), non_blocking=True)
            graph.replay()
            return output.cpu()

    return answer
