"""The load test of a server that runs somewhere: what it is asked, its first rate, and the search of its goodput."""

from __future__ import annotations

import asyncio
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from artifacts import UsageError, find_task
from runtime.loadtest.client import Target
from runtime.loadtest.contenders import Contender
from runtime.loadtest.goodput import LoadConfig, QuerySet, describe_search, search_goodput
from runtime.loadtest.search import Search
from runtime.loadtest.wire import RemoteModel, ServerUrl, WireServer
from runtime.oip.datatypes import NUMPY_NAMES

LABELS = "labels"
_CLASSIFICATION = "classification"
_IN_FLIGHT = 32
_FIRST_S = 1.0  # for which a server is asked without pause, to know where its search begins
_BEGIN = 0.7  # of that rate
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class RemoteQueries:
    """What a server is asked.

    Attributes:
        judged: by what.
        rows: input -> (N, ...).
        outputs: whose answers are judged, in the order of those that they are compared with; empty: all.
    """

    judged: QuerySet
    rows: Mapping[str, np.ndarray]
    outputs: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePlan:
    """What is loaded, and with what.

    Attributes:
        url: of the server.
        model: its name there; ``None``: the only one.
        token: that the server asks for.
        queries: makes the queries of a model.
        bounds_ms: ascending.
        config: how it is loaded.
    """

    url: ServerUrl
    model: str | None
    token: str | None
    queries: Callable[[RemoteModel], RemoteQueries]
    bounds_ms: Sequence[float]
    config: LoadConfig


async def load_server(plan: RemotePlan, *, done: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Measures a server's goodput at every bound; returns the result for ``--json``.

    Raises:
        UnreachableError: nothing answers there.
        RefusedError: there is no such model, or it is not ready.
        UsageError: the queries do not fit it.
        As ``Target.answer``: the server does not answer the first query.
    """
    async with AsyncExitStack() as stack:
        server = await WireServer.open(stack, plan.url, token=plan.token)
        model = await server.find_model(plan.model)
        asked = plan.queries(model)
        queries = asked.judged
        model = model.with_outputs(asked.outputs)
        target = server.load(model, asked.rows)
        answers, _ = await target.answer(0)
        if queries.full is None and queries.targets is not None and (answers[0].ndim != 2 or answers[0].shape[1] < 2):
            raise UsageError(
                f"labels judge answers of the shape (n, classes); output '{model.outputs[0].name}' has "
                f"{list(answers[0].shape)}. Leave {LABELS} out, or give the run of the model with --run DIR"
            )
        contender = Contender(policy=plan.url.text, target=target)
        rate = await measure_throughput(target, queries.count)
        bounds = []
        for bound_ms in plan.bounds_ms:
            search = Search(contender, _BEGIN * rate, plan.config.repeats)
            await search_goodput([search], queries, plan.config, bound_s=bound_ms / 1e3, done=done)
            found = describe_search(search, queries)
            if model.exit_index is None:
                found.pop("exit_fractions", None)
            bounds.append({"slo_ms": bound_ms, "contenders": [found]})
    return {
        "url": plan.url.text, "model": model.name, "platform": model.platform, "throughput_per_s": rate,
        "queries": queries.count, "bounds": bounds,
    }  # fmt: skip


async def measure_throughput(target: Target, queries: int) -> float:
    """Returns how many requests a second are answered where 32 are under way all the time; errors as ``answer``."""
    started = perf_counter()
    asked = 0

    async def keep_asking() -> None:
        nonlocal asked
        while perf_counter() - started < _FIRST_S:
            asked += 1
            await target.answer(asked % queries)

    await asyncio.gather(*(keep_asking() for _ in range(_IN_FLIGHT)))
    return asked / (perf_counter() - started)


def read_arrays(file: Path, model: RemoteModel, count: int) -> RemoteQueries:
    """Returns queries from an ``.npz`` that holds an array (N, ...) per input, and ``labels`` (N,) where it has any.

    Raises:
        UsageError: it is no such file, or does not fit the model.
    """
    names = [tensor.name for tensor in model.inputs]
    expected = (
        f"expected an .npz with arrays called {', '.join(names)} and, where there are any, {LABELS}. Images, tables "
        "and texts are read as the network of a run takes them: give --run DIR too"
    )
    try:
        with np.load(file, allow_pickle=False) as held:
            found = {name: held[name] for name in (*names, LABELS) if name in held.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"--data {file}: {error}; {expected}") from error
    if missing := [name for name in names if name not in found]:
        raise UsageError(f"--data {file}: there is no array '{missing[0]}'; {expected}")
    lengths = {len(array) if array.ndim else 0 for array in found.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"--data {file}: arrays of {sorted(lengths)} rows; expected as many of each, and at least 1")
    cut = {name: array[:count] for name, array in found.items()}
    return _judged(len(cut[names[0]]), cut.pop(LABELS, None), cut)


def make_random(model: RemoteModel, count: int, seed: int) -> RemoteQueries:
    """Returns random queries: numbers of the standard normal distribution, integers 0, truth values true.

    Raises:
        UsageError: nothing can be drawn for an input: it is of strings, of open shape, or too large.
    """
    random = np.random.default_rng(seed)
    rows = {}
    for tensor in model.inputs:
        dtype = np.dtype(NUMPY_NAMES.get(tensor.datatype, "object"))
        size = count * math.prod(tensor.row_shape) * dtype.itemsize
        if dtype.kind == "O" or -1 in tensor.row_shape or size > _MOST_BYTES:
            raise UsageError(
                f"{count} rows of {tensor.datatype} {list(tensor.row_shape)}, as input '{tensor.name}' takes them, are "
                "not drawn at random: name rows with --data FILE.npz, the run of the model with --run DIR, or fewer "
                "with --samples N"
            )
        shape = (count, *tensor.row_shape)
        if dtype.kind == "f":
            rows[tensor.name] = random.standard_normal(shape, np.float32).astype(dtype)
        else:
            rows[tensor.name] = np.full(shape, dtype.kind == "b", dtype)
    return _judged(count, None, rows)


def _judged(count: int, labels: np.ndarray | None, rows: Mapping[str, np.ndarray]) -> RemoteQueries:
    task, nowhere = find_task(_CLASSIFICATION), np.empty(0, np.int64)
    return RemoteQueries(QuerySet(count=count, task=task, full=None, targets=labels, exits=nowhere), rows)
