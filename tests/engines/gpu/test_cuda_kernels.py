"""The kernels: they compile, their layouts agree with Python's, and closing ranks is free of races.

What runs here is the algorithm, thread by thread in random order; ``test_fake_cuda`` runs the source itself.
"""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import EngineError
from engines import HostDevice
from engines.gpu import kernels

Thread = Iterator[str]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_kernels_compile(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="compiles kernels: pip install 'pame[cuda]'")
    cubin = kernels.compile_kernels(architecture)
    assert cubin.startswith(b"\x7fELF")
    assert all(name.encode() in cubin for name in kernels.KERNELS)


def test_an_unknown_architecture_is_named() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="compiles kernels: pip install 'pame[cuda]'")
    with pytest.raises(EngineError, match=r"sm_12345 .*gpu-architecture"):
        kernels.compile_kernels("sm_12345")


def test_names_and_sizes() -> None:
    assert set(re.findall(r"__launch_bounds__\(BLOCK\) (\w+)\(", kernels.SOURCE)) == set(kernels.KERNELS)
    assert ctypes.sizeof(kernels.Carried) + 32 <= 4096
    assert ctypes.sizeof(kernels.Gather) <= 4096


def test_the_grid_covers_every_possible_move_and_long_rows_in_slices() -> None:
    assert kernels.split_grid(1, []) == (1, 1, 1)
    assert kernels.split_grid(9, [4, 40]) == (4, 2, 1)
    assert kernels.split_grid(64, [802816])[2] == 25
    assert kernels.split_grid(64, [1 << 40])[2] < 65536


class SplitEmulation:
    """``split_rows`` of the source, statement by statement; every yield is a point where any other thread may go on."""

    def __init__(self, confidence: np.ndarray, count: int, threshold: float, tensors: list[np.ndarray], block: int):
        self.confidence, self.count, self.threshold, self.tensors = confidence, count, np.float32(threshold), tensors
        self.block = block
        self.report: dict[int, int] = {}

    def leaves(self, row: int) -> bool:
        return bool(self.confidence[row] >= self.threshold)

    def sum_up_to(self, thread: int, value: tuple[int, int], slots: list[tuple[int, int]]) -> Iterator[str]:
        slots[thread] = value
        yield "barrier"
        step = 1
        while step < self.block:
            earlier = slots[thread - step] if thread >= step else (0, 0)
            yield "barrier"
            slots[thread] = (slots[thread][0] + earlier[0], slots[thread][1] + earlier[1])
            yield "barrier"
            step *= 2

    def thread(self, thread: int, move: int, tensor: int, piece: int, pieces: int, shared: dict) -> Thread:
        slots, count, block = shared["slots"], self.count, self.block
        reports = move == tensor == piece == 0
        own = sum(self.leaves(row) for row in range(thread, count, block))
        yield from self.sum_up_to(thread, (own, 0), slots)
        leaving = slots[block - 1][0]
        staying = count - leaving
        if thread == 0:
            shared["target"] = shared["source"] = -1
            if reports:
                self.report[0] = leaving
        yield "barrier"
        before = (0, 0)
        for first in range(0, count, block):
            row = first + thread
            leaver = row < count and self.leaves(row)
            mover = row < count and not leaver and row >= staying
            yield from self.sum_up_to(thread, (int(leaver), int(mover)), slots)
            rank = (before[0] + slots[thread][0] - leaver, before[1] + slots[thread][1] - mover)
            before = (before[0] + slots[block - 1][0], before[1] + slots[block - 1][1])
            if leaver:
                if reports:
                    self.report[1 + rank[0]] = row
                if rank[0] == move and row < staying:
                    shared["target"] = row
            if mover and rank[1] == move:
                shared["source"] = row
            yield "barrier"
        if shared["source"] < 0 or not self.tensors:
            return
        flat = self.tensors[tensor].reshape(len(self.tensors[tensor]), -1)
        for value in range(piece * block + thread, flat.shape[1], pieces * block):
            read = flat[shared["source"], value]
            yield "step"
            flat[shared["target"], value] = read
            yield "step"

    def run(self, seed: int, pieces: int) -> list[int]:
        """Runs all threads of all blocks at once in a random order; returns the rows that left."""
        blocks: list[list[Thread]] = []
        for move in range(max(1, self.count // 2)):
            for tensor in range(max(1, len(self.tensors))):
                for piece in range(pieces):
                    shared: dict = {"slots": [(0, 0)] * self.block}
                    blocks.append(
                        [self.thread(thread, move, tensor, piece, pieces, shared) for thread in range(self.block)]
                    )
        interleave(blocks, random.Random(seed))
        return [self.report[1 + place] for place in range(self.report[0])]


def interleave(blocks: list[list[Thread]], dice: random.Random) -> None:
    """Lets threads take steps in random order; a block passes a barrier when all its threads are there."""
    running = [(block, thread) for block, threads in enumerate(blocks) for thread in range(len(threads))]
    waiting: dict[int, list[int]] = {block: [] for block in range(len(blocks))}
    alive = {block: len(threads) for block, threads in enumerate(blocks)}
    while running:
        place = dice.randrange(len(running))
        running[place], running[-1] = running[-1], running[place]
        block, thread = running[-1]
        state = next(blocks[block][thread], "done")
        if state == "step":
            continue
        running.pop()
        if state == "barrier":
            waiting[block].append(thread)
        else:
            alive[block] -= 1
        if len(waiting[block]) == alive[block]:
            running += [(block, waits) for waits in waiting[block]]
            waiting[block] = []


def check_emulation(leaves: list[float], *, seed: int, block: int, pieces: int, threshold: float = 0.5) -> None:
    rng = np.random.default_rng(seed)
    count, rows = len(leaves), len(leaves) + 2
    confidence = np.array([*leaves, 1.0, 1.0], dtype=np.float32)
    tensors = [rng.standard_normal((rows, 5)), rng.random((rows, 1)) > 0.5]
    expected = [tensor.copy() for tensor in tensors]
    reference = HostDevice().split_rows(count, confidence=confidence, threshold=threshold, carried=expected)
    left = SplitEmulation(confidence, count, threshold, tensors, block).run(seed, pieces)
    assert left == reference.left
    for tensor, values in zip(tensors, expected, strict=True):
        np.testing.assert_array_equal(tensor, values)


@settings(max_examples=60, deadline=None)
@given(
    leaves=st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), min_size=1, max_size=11),
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from([2, 4]),
    pieces=st.integers(1, 2),
)
def test_closing_ranks_is_the_hosts_in_whatever_order_threads_run(
    leaves: list[float], seed: int, block: int, pieces: int
) -> None:
    check_emulation(leaves, seed=seed, block=block, pieces=pieces)


@pytest.mark.parametrize("seed", range(3))
def test_several_rounds_of_a_block(seed: int) -> None:
    dice = random.Random(seed)
    check_emulation([float(dice.random() < 0.5) for _ in range(24)], seed=seed, block=8, pieces=1)


def test_the_emulation_finds_a_missing_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the barrier behind the sum some order must fail, or the test above proves nothing."""
    whole = SplitEmulation.sum_up_to

    def without(self: SplitEmulation, *given: object) -> Iterator[str]:
        yield from list(whole(self, *given))[:1]  # type: ignore[arg-type]

    monkeypatch.setattr(SplitEmulation, "sum_up_to", without)

    def goes_wrong(seed: int) -> bool:
        try:
            check_emulation([1.0, 0.0, 0.0, 1.0, 0.0], seed=seed, block=4, pieces=1)
        except (AssertionError, KeyError):
            return True
        return False

    assert any(goes_wrong(seed) for seed in range(20))
