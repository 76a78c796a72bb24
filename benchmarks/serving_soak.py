"""Soak of a host: many requests with cancels, deadlines, engine faults and reloads, in process and over the wire.

    python -m benchmarks.serving_soak --way process --requests 1000000 --json soak.json
    python -m benchmarks.serving_soak --way http --requests 100000

Of the requests, of 1 to 3 rows each, 5 % are cancelled on their way and 2 % have a deadline that is too short; 0.1 % of
the engine runs fail, and bundles take over from each other while requests are under way. Every answer is compared with
``Runtime.run`` over the same rows. The host runs over fake engines, whose answers depend on every row. Over the wire
the server is a process of its own, whose memory is read; the first fifth of the requests warms up.

The command fails where a request is lost or ends in a way that it should not, an answer is another one than
``Runtime.run``'s, or the server counts another number of answers.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from artifacts import (
    BundleSpec,
    DeadlineError,
    EngineError,
    ExitPlan,
    GraphSpec,
    PlannedExit,
    PredictedLatency,
    StageSpec,
    TensorSpec,
    environment_fingerprint,
)
from engines import EngineSet, FakeEngine, HostDevice, plan_covers
from runtime import AsyncRuntime, HostOptions, Runtime
from runtime.serve.models import ServedModel
from runtime.serve.options import Address, BundleSource, ServeOptions
from runtime.serve.server import ModelServer, run_in_loop
from runtime.serve.service import InferenceService

WAYS = ("process", "http", "grpc")
NAME, ANY = "net", Address("127.0.0.1", 0)
STAGES, LARGEST, ROWS = 3, 16, 256
IN_FLIGHT, MOST_ROWS = 32, 3
CANCELLED, LATE, FAULTY = 0.05, 0.02, 0.001
WARM_UP = 0.2
SAMPLES = 100  # of the memory
WIDTH = 1 + STAGES
THRESHOLD = 0.5


def make_net(*, fault_share: float = 0.0) -> tuple[BundleSpec, list[EngineSet]]:
    """Returns a bundle of fakes: column 0 of a row is its value, column 1 + k its confidence after stage k."""
    random = Random(0)  # noqa: S311
    stages, sets = [], []
    x = TensorSpec(name="x", dtype="float32", row_shape=(WIDTH,))
    answer = TensorSpec(name="answer", dtype="float32", row_shape=(2,))
    confidence = TensorSpec(name="confidence", dtype="float32", row_shape=())
    for index in range(STAGES):
        last = index == STAGES - 1
        source = x if index == 0 else TensorSpec(name=f"h{index}", dtype="float32", row_shape=(WIDTH,))
        onward = () if last else (TensorSpec(name=f"h{index + 1}", dtype="float32", row_shape=(WIDTH,)),)
        graph = GraphSpec(
            name=f"stage_{index}", file="", inputs=(source,), outputs=(*onward, answer, confidence),
            confidence="confidence", answers=("answer",),
        )  # fmt: skip

        def outputs(inputs: Mapping[str, np.ndarray], index: int = index) -> Any:
            if random.random() < fault_share:
                raise EngineError("now and then")
            (rows,) = inputs.values()
            moved = rows.copy()
            moved[:, 0] += 1
            answers = np.stack([rows[:, 0], rows[:, 0] * (index + 2)], axis=1)
            return {f"h{index + 1}": moved, "answer": answers, "confidence": rows[:, 1 + index].copy()}

        engine = FakeEngine(graph, max_batch_size=LARGEST, outputs=outputs)
        engine.batches = _Nothing()
        covers = plan_covers({LARGEST: 0.1}, largest=LARGEST, fixed=False)
        sets.append(EngineSet(engine, covers))
        stages.append(
            StageSpec(graph=graph, engine="", threshold=None if last else THRESHOLD, median_ms={str(LARGEST): 0.1})
        )
    exits = tuple(
        PlannedExit(cut=f"h{index}", threshold=THRESHOLD, leaving_share=0.3, metric=1.0, arrival_ms=1.0)
        for index in range(STAGES - 1)
    )
    plan = ExitPlan(
        model_digest="", trace_digest="", search="", tolerance=0.01, delta=None, batch_size=LARGEST, backend="fake",
        threads=1, exits=exits, full_metric=1.0, predicted_metric=1.0,
        predicted=PredictedLatency(full_ms=1.0, mean_ms=1.0, batch_ms=1.0, oracle_mean_ms=1.0),
    )  # fmt: skip
    spec = BundleSpec(
        name=NAME, task="classification", backend="fake", threads=1, max_batch_size=LARGEST, inputs=(x,),
        outputs=(answer,), stages=tuple(stages), plan=plan,
    )  # fmt: skip
    return spec, sets


class _Nothing(list[int]):
    """The record of an engine's runs that keeps none, since it would grow for as long as the soak lasts."""

    def append(self, _: int) -> None:
        pass


def open_host() -> AsyncRuntime:
    """Returns a host over fakes that fail now and then."""
    spec, sets = make_net(fault_share=FAULTY)
    options = HostOptions(max_engine_faults=1000, max_waiting_rows=MOST_ROWS * IN_FLIGHT)  # so that none is refused
    return AsyncRuntime.over(spec, sets, HostDevice(), options)


async def take_over(host: AsyncRuntime) -> None:
    """Lets another bundle of fakes take over, as ``reload`` does with one from a folder."""
    await host._replace(open_host()._open_parts)


@dataclass(slots=True)
class Soak:
    """What is asked, and what has come of it.

    Attributes:
        requests: how many are sent.
        inputs: (ROWS, WIDTH) of which requests take some.
        expected: per output, the answers of ``Runtime.run`` to all of them: answer, exit and confidence.
        outcomes: how requests ended -> how many.
        wrong: answers that differ.
        unexpected: errors that should not have come.
    """

    requests: int
    inputs: np.ndarray
    expected: tuple[np.ndarray, ...]
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    unexpected: list[str] = field(default_factory=list)

    def check(self, rows: list[int], found: tuple[np.ndarray, ...]) -> None:
        """Compares the answer to a request."""
        same = all((array == expected[rows]).all() for array, expected in zip(found, self.expected, strict=True))
        self.wrong += not same


def make_soak(requests: int) -> Soak:
    """Returns a soak that has not begun."""
    random = np.random.default_rng(1)
    inputs = random.random((ROWS, WIDTH), np.float32)
    spec, sets = make_net()
    with Runtime(spec, sets, HostDevice()) as whole:
        found = whole.run(inputs)
    return Soak(requests, inputs, (np.asarray(found.outputs), found.exit_index, found.confidence))


Ask = Callable[[np.ndarray, float | None], Awaitable[tuple[np.ndarray, ...]]]
"""Answers rows within milliseconds, or ``None``: (answer, exit, confidence). Raises what ``told`` knows."""


async def use_roughly(soak: Soak, ask: Ask, told: Callable[[Exception], str | None], at: Callable[[int], Any]) -> None:
    """Sends all requests, ``IN_FLIGHT`` at a time.

    Args:
        soak: is filled.
        ask: asks.
        told: returns which of the expected outcomes an error is; ``None``: of none.
        at: called with the number of every request before it is sent.
    """
    random = Random(2)  # noqa: S311
    loop = asyncio.get_running_loop()

    async def send(rows: list[int], timeout_ms: float | None) -> None:
        try:
            found = await ask(soak.inputs[rows], timeout_ms)
        except asyncio.CancelledError:
            soak.outcomes["cancelled"] += 1
            return
        except Exception as error:  # noqa: BLE001 - all are counted, and those that should not be are kept
            outcome = told(error)
            soak.outcomes[outcome or "unexpected"] += 1
            if outcome is None and len(soak.unexpected) < 20:
                soak.unexpected.append(f"{type(error).__name__}: {error}")
            return
        soak.outcomes["answered"] += 1
        soak.check(rows, found)

    under_way: set[asyncio.Task[None]] = set()
    for number in range(soak.requests):
        at(number)
        rows = [random.randrange(ROWS) for _ in range(random.randint(1, MOST_ROWS))]
        task = asyncio.create_task(send(rows, 0.2 if random.random() < LATE else None))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        if random.random() < CANCELLED:
            loop.call_later(random.random() * 0.002, task.cancel)
        while len(under_way) >= IN_FLIGHT:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*under_way)


def memory_mb(process: int) -> float:
    """Returns the resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch:
    """Reloads and samples of memory, at their times among the requests."""

    def __init__(self, requests: int, reloads: int, process: int, reload: Callable[[], Any]) -> None:
        self._every = max(1, requests // SAMPLES)
        self._reload_every = max(1, requests // (reloads + 1))
        self._left = reloads
        self._process = process
        self._reload = reload
        self._from = int(requests * WARM_UP)
        self.samples: list[tuple[float, float]] = []

    def __call__(self, number: int) -> None:
        if self._left and number and number % self._reload_every == 0:
            self._left -= 1
            self._reload()
        if number >= self._from and number % self._every == 0:
            self.samples.append((time.monotonic(), memory_mb(self._process)))

    def growth(self) -> dict[str, float]:
        """Returns how the memory grew after the warm-up: a line through the samples, and its ends."""
        at, mb = np.array(self.samples).T
        hours = (at - at[0]) / 3600
        slope, start = np.polyfit(hours, mb, 1)
        return {
            "after_warm_up_mb": float(mb[0]), "at_the_end_mb": float(mb[-1]), "hours": float(hours[-1]),
            "growth_percent": float(slope * hours[-1] / start * 100),
            "growth_percent_per_hour": float(slope / start * 100),
        }  # fmt: skip


async def soak_in_process(soak: Soak, reloads: int) -> dict[str, Any]:
    """Uses a host of this process."""
    taking: set[asyncio.Task[None]] = set()
    async with open_host() as host:

        def reload() -> None:
            taking.add(asyncio.create_task(take_over(host)))

        async def ask(rows: np.ndarray, timeout_ms: float | None) -> tuple[np.ndarray, ...]:
            found = await host.infer(rows, timeout_ms=timeout_ms)
            return np.asarray(found.outputs), found.exit_index, found.confidence

        def told(error: Exception) -> str | None:
            return {DeadlineError: "late", EngineError: "failed"}.get(type(error))

        watch = Watch(soak.requests, reloads, os.getpid(), reload)
        await use_roughly(soak, ask, told, watch)
        await asyncio.gather(*taking)
        state = host.snapshot()
        return {"reloads": state.reloads, "open": state.scheduling.open_tickets, "memory": watch.growth()}


def serve_fakes(pipe: Connection) -> None:
    """The server's process: says where it is, and does what it is told: ``reload``, ``counts``, ``stop``."""
    logging.getLogger("pame.runtime").setLevel(logging.ERROR)

    async def serve() -> None:
        options = ServeOptions(
            bundles=(BundleSource(NAME, Path("none")),), http=ANY, grpc=ANY, metrics=None, drain_delay_s=0.0
        )
        service = InferenceService(options)
        host = open_host()
        model = service.models[NAME] = ServedModel(NAME, Path("none"), options, host)
        server, loop = ModelServer(service), asyncio.get_running_loop()

        def obey() -> None:
            while (order := pipe.recv()) != "stop":
                if order == "reload":
                    asyncio.run_coroutine_threadsafe(take_over(host), loop)
                else:
                    state = host.snapshot()
                    pipe.send((state.reloads, state.scheduling.open_tickets, model.statistics.success.count))
            loop.call_soon_threadsafe(server.stop)

        def ready() -> None:
            pipe.send({name: str(address) for name, address in server.addresses.items()})
            threading.Thread(target=obey, daemon=True).start()

        await server.run(ready)

    run_in_loop(serve())


async def soak_over_the_wire(soak: Soak, way: str, reloads: int) -> dict[str, Any]:
    """Uses a server in a process of its own, by ``tritonclient``."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve_fakes, args=(there,), daemon=True)
    server.start()
    address, library = here.recv()[way], importlib.import_module(f"tritonclient.{way}.aio")
    names = ("answer", "exit_index", "confidence")

    def told(error: Exception) -> str | None:
        text = str(error)
        known = {"deadline": "late", "failed with its run": "failed", "CANCELLED": "cancelled"}
        return next((outcome for part, outcome in known.items() if part in text), None)

    async with library.InferenceServerClient(address) as client:

        async def ask(rows: np.ndarray, timeout_ms: float | None) -> tuple[np.ndarray, ...]:
            stated = library.InferInput("x", list(rows.shape), "FP32")
            stated.set_data_from_numpy(rows)
            microseconds = None if timeout_ms is None else int(timeout_ms * 1e3)
            found = await client.infer(NAME, [stated], timeout=microseconds)
            return tuple(found.as_numpy(name) for name in names)

        watch = Watch(soak.requests, reloads, server.pid or 0, lambda: here.send("reload"))
        await use_roughly(soak, ask, told, watch)
    reloaded, open_, answered = await settled(here, reloads)
    here.send("stop")
    server.join(60)
    return {"reloads": reloaded, "open": open_, "answered_by_the_server": answered, "memory": watch.growth()}


async def settled(pipe: Connection, reloads: int) -> tuple[int, int, int]:
    """Returns the server's counts once nothing is open, or after ten seconds."""
    for _ in range(100):
        pipe.send("counts")
        counts: tuple[int, int, int] = pipe.recv()
        if counts[0] == reloads and counts[1] == 0:
            break
        await asyncio.sleep(0.1)
    return counts


def run_soak(way: str, requests: int, reloads: int) -> dict[str, Any]:
    """Runs a soak; ``faults`` of the result says what went wrong, and is empty where nothing did."""
    soak, started = make_soak(requests), time.monotonic()
    found = asyncio.run(soak_in_process(soak, reloads) if way == "process" else soak_over_the_wire(soak, way, reloads))
    answered, outcomes = soak.outcomes["answered"], soak.outcomes
    by_server = found.get("answered_by_the_server", answered)
    checks = {
        "requests were lost": outcomes.total() != requests,
        "answers differ from Runtime.run": soak.wrong > 0,
        "requests ended as they should not": outcomes["unexpected"] > 0,
        "requests are still open": found["open"] > 0,
        "bundles did not take over": found["reloads"] != reloads,
        "the server answered another number of requests": not answered <= by_server <= answered + outcomes["cancelled"],
    }
    return {
        "way": way, "requests": requests, "seconds": time.monotonic() - started, "outcomes": dict(outcomes), **found,
        "wrong": soak.wrong, "unexpected": soak.unexpected, "faults": [name for name, bad in checks.items() if bad],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, default="process", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--reloads", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    logging.getLogger("pame.runtime").setLevel(logging.ERROR)  # warns of every fault, and they are meant
    result = run_soak(arguments.way, arguments.requests, arguments.reloads)
    memory = result["memory"]
    print(
        f"{result['way']}: {result['requests']} requests in {result['seconds']:.0f} s: {result['outcomes']}, "
        f"{result['reloads']} reloads; memory {memory['after_warm_up_mb']:.1f} to {memory['at_the_end_mb']:.1f} MB"
    )
    for fault in (*result["faults"], *result["unexpected"]):
        print(f"fault: {fault}", file=sys.stderr)
    if arguments.json is not None:
        whole = {**result, "environment": dict(environment_fingerprint())}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
