"""Rows of torch: networks eager, as CUDA graphs and compiled, from host arrays to host answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.nets.making import network_inputs, torch_module
from benchmarks.gpu.nets.subjects import Batch, time_in_turns
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import Setting


def add_torch_rows(record: Record, setting: Setting, network: str, size: int, *, compiled: bool) -> None:
    """Adds a row each for float32 and for TF32: eager and torch's own CUDA graphs, or compiled, which takes its time.

    TF32 is what torch's convolutions compute in unless they are told otherwise; its matrix products do not.
    """
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    if where == "cpu" and not setting.rehearsal:
        record.add(f"{network} in torch", error=f"torch {torch.__version__} sees no GPU")
        return
    for tf32 in (False, True):
        record.attempt(
            f"{network} in torch, {where}, {'compiled' if compiled else 'plain'}, {'TF32' if tf32 else 'float32'}, "
            f"batch {size}",
            partial(_time, torch, network, setting, size, where, compiled=compiled, tf32=tf32),
            needs_s=setting.choose(20 if compiled else 4, 1),
        )


def _time(
    torch: Any, network: str, setting: Setting, size: int, where: str, *, compiled: bool, tf32: bool
) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    module = torch_module(network, rehearsal=setting.rehearsal).to(where)
    batch = network_inputs(network, size, rehearsal=setting.rehearsal)
    serves: dict[str, Callable[[Batch], object]] = {}
    if not compiled:
        serves["eager"] = _serve(torch, module, where)
        if where == "cuda":
            serves["CUDA graph"] = _serve_graph(torch, module, batch)
    elif where == "cuda":
        serves["compiled"] = _serve(torch, torch.compile(module), where)
    return {"ways": time_in_turns(serves, batch, rounds=setting.choose(100, 3), budget_s=setting.choose(2, 1))}


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
