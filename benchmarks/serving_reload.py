"""Reloads and the end of a server under load: at 80 % of what it can do, in process, over HTTP and over gRPC.

    python -m benchmarks.serving_reload --bundle runs/resnet/bundle --json serving_reload.json

Requests of one row are sent when they are due (Poisson), at 80 % of what 32 of them under way all the time get through.
The bundle is reloaded every few seconds: verified, opened and warmed up beside the old one, which then finishes what it
has. The p99 of the requests that are due in a reload is compared with that of as many seconds just before it; the
figure is the median of these ratios, and the p99 of all requests of either kind stands beside it.

Then the server, a process of its own, gets SIGTERM under the same load, which goes on until the process has ended and a
while longer. Every request must be answered, or refused in words, or find nothing that listens any more; a connection
that breaks under a request, and a request that was admitted and fails, are faults. gRPC cancels calls that reach it in
the instant at which it closes its connections; those were never admitted, and are told apart as cut off. In process,
the host drains.

The command fails where a request has a fault, or a server ends with another code than 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import Answers, PameError, RefusedError, UnreachableError, environment_fingerprint
from artifacts.console import print_table
from runtime import AsyncRuntime
from runtime.loadtest.client import HostTarget, SlowRuns, Target, play
from runtime.loadtest.remote import make_random, measure_throughput
from runtime.loadtest.wire import WireServer, parse_url, read_metadata
from runtime.oip.interface import ModelInterface
from runtime.simulate.arrivals import make_arrivals

WAYS = ("process", "http", "grpc")
NAME = "net"
QUERIES = 512
SHARE = 0.8  # of the capacity
LONGEST_S = 600.0  # of a load
AFTER_S = 0.5  # for which the load goes on when the server has ended
ENDED = ("answered", "refused", "nothing listens", "cut off", "fault")
REFUSALS = ("drains", "is closed", "queue is full")  # our own words, not those of a transport that breaks off
WHERE = re.compile(r"serving .* at (.*)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        reloads: of a host.
        ends: how many hosts are ended under load.
        seconds: of load before the end.
        gap_s: between reloads, besides as long as the reload took.
        delay_s: the drain delay of servers.
        threads: of each engine; ``None``: as planned.
        seed: of arrivals and queries.
    """

    reloads: int = 10
    ends: int = 5
    seconds: float = 2.0
    gap_s: float = 1.5
    delay_s: float = 1.0
    threads: int | None = None
    seed: int = 0


@dataclass(slots=True)
class Watched:
    """A target that remembers how its requests ended."""

    target: Target
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def answer(self, query: int) -> tuple[Answers, int]:
        try:
            found = await self.target.answer(query)
        except PameError as error:
            ended = how_it_ended(error)
            self.outcomes[ended] += 1
            if ended == "fault":
                self.faults.append(f"{type(error).__name__}: {error}")
            raise
        self.outcomes["answered"] += 1
        return found

    def slow_runs(self) -> SlowRuns:
        return self.target.slow_runs()


def how_it_ended(error: PameError) -> str:
    """Returns whether a server refused a request, nothing listened, gRPC cut the call off, or that is a fault."""
    if isinstance(error, RefusedError) and any(words in str(error) for words in REFUSALS):
        return "refused"
    if isinstance(error, UnreachableError) and not error.connected:
        return "nothing listens"
    return "cut off" if str(error) == "CANCELLED" else "fault"


@dataclass(slots=True, kw_only=True)
class Host:
    """What is loaded.

    Attributes:
        target: answers.
        reload: lets the same bundle take over once more.
        end: begins to end it; returns when it has ended, with the code of its process, 0 in process.
    """

    target: Target
    reload: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[int]]


@asynccontextmanager
async def open_in_process(bundle: Path, settings: Settings) -> AsyncIterator[Host]:
    """A host in this process."""
    async with AsyncRuntime.load(bundle, threads=settings.threads) as host:
        model = read_metadata(ModelInterface(host.spec).metadata(NAME))
        rows = make_random(model, QUERIES, 0).rows

        async def end() -> int:
            await host.drain()
            return 0

        target = HostTarget(host, [rows[tensor.name] for tensor in host.spec.inputs])
        yield Host(target=target, reload=lambda: host.reload(bundle), end=end)


@asynccontextmanager
async def open_server(way: str, bundle: Path, settings: Settings) -> AsyncIterator[Host]:
    """A server in a process of its own, which is ended at the latest with the block."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.copytree(bundle, folder / NAME)
        words = [
            "-m", "runtime.serve", "--bundle", f"{NAME}={folder / NAME}", "--allow-load", str(folder),
            "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--metrics", "off",
            "--drain-delay", str(settings.delay_s),
            *([] if settings.threads is None else ["--threads", str(settings.threads)]),
        ]  # fmt: skip
        log = folder / "log"
        with log.open("wb") as written:
            process = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=written)
        stack.push_async_callback(end_process, process)
        while (said := WHERE.search(log.read_text())) is None:
            if process.returncode is not None:
                raise PameError(f"the server did not start: {log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        places = dict(part.split(" ") for part in said[1].split(", "))
        server = await WireServer.open(stack, parse_url(f"{way}://{places[way]}"))
        model = await server.find_model(NAME)

        async def end() -> int:
            process.send_signal(signal.SIGTERM)
            return await process.wait()

        yield Host(
            target=server.load(model, make_random(model, QUERIES, 0).rows), reload=lambda: server.reload(NAME), end=end
        )


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Ends a process that still runs."""
    if process.returncode is None:
        process.kill()
        await process.wait()


def open_host(way: str, bundle: Path, settings: Settings) -> Any:
    """Opens a host in this process, or a server."""
    return open_in_process(bundle, settings) if way == "process" else open_server(way, bundle, settings)


async def measure_capacity(target: Target) -> float:
    """Returns how many requests a second get through where many are under way."""
    await measure_throughput(target, QUERIES)
    return statistics.median([await measure_throughput(target, QUERIES) for _ in range(3)])


async def measure_reloads(host: Host, rate: float, settings: Settings) -> dict[str, Any]:
    """Reloads under load; returns the p99 of the requests in reloads and beside them."""
    loop, watched = asyncio.get_running_loop(), Watched(host.target)
    windows: list[tuple[float, float]] = []
    stop = asyncio.Event()

    async def reload_now_and_then() -> None:
        await asyncio.sleep(settings.gap_s)
        for _ in range(settings.reloads):
            started = loop.time()
            await host.reload()
            windows.append((started, loop.time()))
            await asyncio.sleep(settings.gap_s + windows[-1][1] - started)
        stop.set()

    reloading = asyncio.create_task(reload_now_and_then())
    due, latency_s = await load_until(watched, rate, stop, settings.seed)
    await reloading
    ratios, calm, busy = [], [], []
    for started, ended in windows:
        before = latency_s[(due >= started - max(settings.gap_s, ended - started)) & (due < started)]
        within = latency_s[(due >= started) & (due < ended)]
        calm.append(before)
        busy.append(within)
        if np.isfinite(within).all() and np.isfinite(before).all():
            ratios.append(p99_ms(within) / p99_ms(before))
    within, before = np.concatenate(busy), np.concatenate(calm)
    failed_within = int(np.isinf(within).sum())
    return {
        "reloads": len(windows), "reload_s": statistics.median(ended - started for started, ended in windows),
        "requests_before": len(before), "requests_within": len(within),
        "p99_before_ms": p99_ms(before), "p99_within_ms": p99_ms(within),
        "ratio_p99": statistics.median(ratios) if ratios else None, "ratios_p99": sorted(ratios),
        "outcomes": dict(watched.outcomes), "faults": watched.faults[:20], "failed_within": failed_within,
        "failed_beside": int(np.isinf(latency_s).sum()) - failed_within,
    }  # fmt: skip


async def measure_end(host: Host, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Ends a host under load; returns how the requests ended."""
    watched, stop = Watched(host.target), asyncio.Event()
    codes: list[int] = []

    async def end_in_the_middle() -> None:
        await asyncio.sleep(seconds)
        codes.append(await host.end())
        await asyncio.sleep(AFTER_S)
        stop.set()

    ending = asyncio.create_task(end_in_the_middle())
    await load_until(watched, rate, stop, seed)
    await ending
    return {"code": codes[0], "outcomes": dict(watched.outcomes), "faults": watched.faults[:20]}


async def load_until(target: Target, rate: float, stop: asyncio.Event, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sends requests until it is told to stop; returns when each was due, by the loop's clock, and its latency."""
    most = int(rate * LONGEST_S)
    arrivals = make_arrivals("poisson", most, rate, seed)
    chosen = np.random.default_rng(seed).integers(QUERIES, size=most)
    played = await play(target, arrivals, chosen, bound_s=float("inf"), stop=stop)
    return played.started_s + arrivals[: len(played.latency_s)], played.latency_s


def p99_ms(latency_s: np.ndarray) -> float:
    """Returns the time within which 99 % of those that were answered were; NaN where none was."""
    answered = latency_s[np.isfinite(latency_s)]
    return float(np.percentile(answered, 99, method="higher") * 1e3) if len(answered) else float("nan")


async def run_way(way: str, bundle: Path, settings: Settings) -> dict[str, Any]:
    """Measures one way: reloads, and ends of as many hosts."""
    async with open_host(way, bundle, settings) as host:
        capacity = await measure_capacity(host.target)
        rate = SHARE * capacity
        reloads = await measure_reloads(host, rate, settings)
    ends = []
    for number in range(settings.ends):
        async with open_host(way, bundle, settings) as host:
            ends.append(await measure_end(host, rate, settings.seconds, settings.seed + number))
    return {
        "way": way, "capacity_per_s": capacity, "rate_per_s": rate, "reloads": reloads, "ends": ends,
        "faults": find_faults(reloads, ends),
    }  # fmt: skip


def find_faults(reloads: dict[str, Any], ends: list[dict[str, Any]]) -> list[str]:
    """Returns what should not have been."""
    found = [f"beside or in a reload: {fault}" for fault in reloads["faults"]]
    if reloads["failed_within"]:
        beside = reloads["failed_beside"]
        slow = f"; {beside} failed beside them, so the machine did not keep up with the load" if beside else ""
        found.append(f"{reloads['failed_within']} requests failed in reloads{slow}")
    for end in ends:
        found += [f"at the end: {fault}" for fault in end["faults"]]
        if end["code"] != 0:
            found.append(f"the server ended with code {end['code']}")
    return found


def print_ways(ways: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    rows = [
        (
            found["way"], f"{found['capacity_per_s']:.0f}", f"{found['rate_per_s']:.0f}", str(reloads["reloads"]),
            f"{reloads['reload_s']:.2f}", f"{reloads['p99_before_ms']:.2f}", f"{reloads['p99_within_ms']:.2f}",
            "-" if reloads["ratio_p99"] is None else f"{reloads['ratio_p99']:.2f}",
            f"{reloads['failed_within']} + {reloads['failed_beside']}",
        )
        for found in ways
        for reloads in (found["reloads"],)
    ]  # fmt: skip
    columns = [
        "way",
        "capacity/s",
        "load/s",
        "reloads",
        "s each",
        "p99 before, ms",
        "p99 within, ms",
        "ratio",
        "failed in + beside",
    ]
    print_table("reloads at 80 % of the capacity; the ratio is the median of those of the reloads", columns, rows)
    rows = [
        (found["way"], str(len(found["ends"])), *(str(ended[name]) for name in ENDED))
        for found in ways
        for ended in (sum((Counter(end["outcomes"]) for end in found["ends"]), Counter[str]()),)
    ]
    print_table("SIGTERM under the same load, in process: drain", ["way", "ends", *ENDED], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ways", default=",".join(WAYS), help="default: %(default)s")
    parser.add_argument("--reloads", type=int, default=Settings.reloads, help="default: %(default)s")
    parser.add_argument("--ends", type=int, default=Settings.ends, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of each engine (default: as planned)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    settings = Settings(reloads=arguments.reloads, ends=arguments.ends, threads=arguments.threads)
    ways = [asyncio.run(run_way(way, arguments.bundle, settings)) for way in arguments.ways.split(",")]
    print_ways(ways)
    for found in ways:
        for fault in found["faults"]:
            print(f"fault: {found['way']}: {fault}", file=sys.stderr)
    if arguments.json is not None:
        whole = {"ways": ways, "environment": dict(environment_fingerprint())}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")
    return 1 if any(found["faults"] for found in ways) else 0


if __name__ == "__main__":
    sys.exit(main())
