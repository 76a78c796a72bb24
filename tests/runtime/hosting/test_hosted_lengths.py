"""``AsyncRuntime`` on a bundle whose rows have several lengths: rows of unlike requests share stages at the smallest
length that holds them, and are answered as in batches of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from artifacts import InputError, UsageError
from runtime import AsyncRuntime, HostOptions, Runtime, read_shadow_log
from runtime.hosting.arenas import StageArenas
from runtime.simulate.command import make_parser, simulate_bundle
from tests.export.sequence_graphs import LENGTHS, draw_sequences
from tests.runtime.hosting.host_worlds import serve
from tests.runtime.sequence_worlds import EXITS, MOST_ROWS, answer_alone, make_sequence_run

Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_sequence_run(tmp_path_factory.mktemp("sequence"))


def draw_requests(count: int, seed: int) -> list[Rows]:
    """Returns requests of 1 to 3 rows of any lengths, padded by nothing, a little, or beyond the largest length."""
    random = Random(seed)
    requests = []
    for number in range(count):
        lengths = [random.randint(1, LENGTHS[-1]) for _ in range(random.randint(1, 3))]
        columns = max(lengths) + random.choice((0, 0, 1, 7))
        requests.append(draw_sequences(lengths, columns=columns, seed=seed * 1000 + number))
    return requests


def watch_entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Returns a list that grows: of every run of a first stage, its length and those of its rows."""
    runs: list[tuple[int, list[int]]] = []
    enter = StageArenas.enter

    def watch(arenas: StageArenas, pieces: Any) -> None:
        masks = [piece.arrays[1][piece.start : piece.stop] for piece in pieces]
        runs.append((arenas.length, [int(own) for mask in masks for own in mask.sum(axis=1)]))
        enter(arenas, pieces)

    monkeypatch.setattr(StageArenas, "enter", watch)
    return runs


def row_of(request: Rows, row: int) -> Rows:
    return {name: array[row : row + 1] for name, array in request.items()}


@pytest.mark.parametrize("policy", ["full", "chain", "pooled", "auto"])
def test_rows_of_all_lengths_are_answered_as_alone(sequence: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = draw_requests(40, seed=1)
    runs = watch_entries(monkeypatch)

    async def run() -> list[Any]:
        async with AsyncRuntime.load(sequence.bundle, policy=policy, max_waiting_rows=200, threads=1) as host:
            answers = await asyncio.gather(*(host.infer(request) for request in requests))
            counts = host.snapshot().stages
            assert len(counts) == len(EXITS) + 1
            assert counts[0].rows == sum(len(request["input_ids"]) for request in requests)
        return answers

    found = serve(run())
    with Runtime.load(sequence.bundle, threads=1) as runtime:
        for request, answer in zip(requests, found, strict=True):
            if policy == "full":
                expected = answer_alone(sequence.model, request, (2.0, 2.0))
            else:
                alone = [runtime.run(row_of(request, row)) for row in range(len(answer.outputs))]
                expected = [(int(result.exit_index[0]), result.outputs[0]) for result in alone]
            assert answer.exit_index.tolist() == [exit_ for exit_, _ in expected]
            np.testing.assert_allclose(answer.outputs, [output for _, output in expected], rtol=1e-4, atol=1e-5)
    assert all(length == next(own for own in LENGTHS if own >= max(rows)) for length, rows in runs)
    assert any(len(set(rows)) > 1 for _, rows in runs), "rows of unlike lengths share runs"
    assert {length for length, _ in runs} == set(LENGTHS)


def test_a_stream_a_reload_and_a_cancelled_neighbour(sequence: Any) -> None:
    requests = draw_requests(12, seed=2)

    async def run() -> list[np.ndarray]:
        async with AsyncRuntime.load(sequence.bundle, threads=1, max_waiting_rows=100) as host:
            gone = asyncio.create_task(host.infer(requests[0]))
            streams = [asyncio.create_task(collect(host, request)) for request in requests[1:7]]
            await asyncio.sleep(0)
            gone.cancel()
            found = list(await asyncio.gather(*streams))
            await host.reload(sequence.bundle)
            return found + list(await asyncio.gather(*(collect(host, request) for request in requests[7:])))

    async def collect(host: AsyncRuntime, request: Rows) -> np.ndarray:
        parts: dict[int, np.ndarray] = {}
        async for rows, outputs in host.stream(request):
            parts |= {int(row): output for row, output in zip(rows, outputs, strict=True)}
        return np.stack([parts[row] for row in sorted(parts)])

    found = serve(run())
    with Runtime.load(sequence.bundle, threads=1) as runtime:
        for request, answer in zip(requests[1:], found, strict=True):
            np.testing.assert_allclose(answer, runtime.run(request).outputs, rtol=1e-4, atol=1e-5)


def test_shadowed_rows_are_seen_and_logged_at_one_length(sequence: Any, tmp_path: Path) -> None:
    options = HostOptions(
        shadow_fraction=0.5, shadow_seed=0, shadow_log=tmp_path / "host", log_inputs=True, drift=None,
        max_waiting_rows=300,
    )  # fmt: skip
    requests = draw_requests(30, seed=3)

    async def run() -> int:
        async with AsyncRuntime.load(sequence.bundle, options=options, max_waiting_rows=300, threads=1) as host:
            await asyncio.gather(*(host.infer(request) for request in requests))
            return host.snapshot().shadowed

    shadowed = serve(run())
    with Runtime.load(
        sequence.bundle, shadow_fraction=0.5, shadow_log=tmp_path / "batches", log_inputs=True, drift=None
    ) as runtime:
        for request in requests:
            runtime.run(request)
    logged = [read_shadow_log(tmp_path / name, model_digest=sequence.model.digest) for name in ("host", "batches")]
    assert logged[0].trace.sample_count == shadowed > 10
    for rows in logged:
        assert rows.trace.sample_count
        assert {array.shape[1] for array in rows.inputs.values()} == {LENGTHS[-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: draw_sequences([17, 3]), r"rows 0 are up to 17 long, .* up to 16"),
        (lambda rows: {**rows, "attention_mask": rows["attention_mask"] * [[1], [0]]}, "every position of rows 1"),
        (lambda rows: {**rows, "input_ids": rows["input_ids"][:, :3]}, "lengths 3 of 'input_ids', 4 of"),
        (lambda rows: {name: array[:, :0] for name, array in rows.items()}, "lengths 0 of 'input_ids'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_queue(sequence: Any, change: Any, message: str) -> None:
    async def run() -> None:
        async with AsyncRuntime.load(sequence.bundle, threads=1) as host:
            with pytest.raises(InputError, match=message):
                await host.infer(change(draw_sequences([4, 2])))
            assert host.snapshot().scheduling.admitted == 0
            assert len((await host.infer(draw_sequences([4, 2]))).outputs) == 2

    serve(run())


def test_simulations_say_that_they_are_for_rows_of_one_shape(sequence: Any) -> None:
    arguments = make_parser().parse_args(
        ["--run", str(sequence.run.root), "--bundle", str(sequence.bundle), "--slo-ms", "25"]
    )
    with pytest.raises(UsageError, match=r"lengths \[4, 8, 16\].*runtime\.bench"):
        simulate_bundle(arguments)


def test_a_long_row_does_not_make_short_ones_wait_for_padding(sequence: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up times are proportional to lengths."""
    runs = watch_entries(monkeypatch)
    short = [draw_sequences([3], seed=seed) for seed in range(MOST_ROWS)]

    async def run() -> None:
        async with AsyncRuntime.load(sequence.bundle, threads=1, policy="chain") as host:
            await asyncio.gather(host.infer(draw_sequences([16], seed=9)), *(host.infer(request) for request in short))

    serve(run())
    assert sum(len(rows) for length, rows in runs if length == LENGTHS[0]) == MOST_ROWS
    assert [rows for length, rows in runs if length > LENGTHS[0]] == [[16]]
