"""Hosts over fake engines, requests of unlike rows, and a gate at which engines wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

from engines import HostDevice
from runtime import AsyncRuntime, HostOptions, Result

T = TypeVar("T")


def serve(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def host_over(net: Any, **options: Any) -> AsyncRuntime:
    return AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice(), HostOptions(**options))


def requests_of(net: Any, sizes: Sequence[int], seed: int = 1) -> list[tuple[np.ndarray, ...]]:
    """Returns the inputs of some requests, cut from one batch of unlike rows."""
    random = np.random.default_rng(seed)
    count = sum(sizes)
    confidence = random.choice(np.float32([0.1, 0.5, 0.9]), (count, net.depth))
    whole = net.batch(confidence, mask=random.random((count, 2)) < 0.5)
    stops = np.cumsum(sizes)
    return [tuple(array[stop - size : stop] for array in whole) for size, stop in zip(sizes, stops, strict=True)]


def assert_equal(found: Result, expected: Result) -> None:
    np.testing.assert_array_equal(found.outputs, expected.outputs)
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    np.testing.assert_array_equal(found.confidence, expected.confidence)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


class Gate:
    """A hook of fake engines that holds every run until it is opened, once armed."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.armed = False
        self._open = threading.Event()

    def __call__(self) -> None:
        if self.armed:
            self.entered.set()
            assert self._open.wait(30)

    def open(self) -> None:
        self.armed = False
        self._open.set()
