"""``ChainPool``: the chains of one runtime; every call takes one, uses it alone, and puts it back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from artifacts import UsageError
from runtime.chain import StageChain


class ChainPool:
    """As many chains as there ever were calls at once; no call waits for another.

    A call that is abandoned (a stream that its caller drops half-way) gives its chain back when Python finalises it,
    which can happen anywhere, even inside this class: hence the re-entrant lock.

    Attributes:
        captured: whether the first chain is one piece of work; it is lent whenever it is not out.
    """

    def __init__(self, make: Callable[[], StageChain], free: Callable[[], None]) -> None:
        """Makes the first chain.

        Args:
            make: makes another chain over the shared engines.
            free: frees the engines and the device that the chains share; called once, when the pool is closed and no
                chain is out.
        """
        self._process = os.getpid()
        self._make = make
        self._free = free
        self._lock = threading.RLock()
        self._idle = [make()]
        self.captured = self._idle[0].captured
        self._out = 0
        self._closed = False

    def take(self) -> StageChain:
        """Lends a chain, which must be given back, whatever happens.

        Raises:
            UsageError: the pool is closed, or belongs to the process that this one was forked from.
        """
        self.check_process()
        with self._lock:
            if self._closed:
                self.check_open()
            self._out += 1
            if self._idle:
                return self._idle.pop()
        try:
            return self._make()
        except BaseException:
            self.give_back(None)
            raise

    def give_back(self, chain: StageChain | None) -> None:
        """Takes a chain back; ``None`` stands for one that could not be made. A forked process keeps what it copied."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._out -= 1
            if chain is not None and not self._closed:
                self._idle.insert(len(self._idle) if chain.captured else 0, chain)  # the last is lent next
            last = self._closed and self._out == 0
        if last:
            self._free()

    def check_process(self) -> None:
        """Raises ``UsageError`` in a process that was forked from the one that opened the pool.

        It is asked before any lock, which another thread may have held when the process was forked.
        """
        if os.getpid() != self._process:
            raise UsageError(
                f"this runtime was opened in process {self._process}, and engines do not survive a fork: their threads "
                "stay behind. Call Runtime.load in every worker, after the fork (gunicorn: post_fork, without preload)"
            )

    def check_open(self) -> None:
        """Raises ``UsageError`` when the pool is closed."""
        if self._closed:
            raise UsageError("this runtime is closed; open another one with Runtime.load(bundle)")

    def close(self) -> None:
        """Lends no more; the shared engines are freed now or, while calls are under way, with the last of them.

        In a forked process nothing is freed: the engines are those of the parent.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._idle.clear()
            last = self._out == 0
        if last:
            self._free()
