"""One arena for the scratch memory of all sessions of a process, for commands that open dozens and run them in turns.

Every session of ONNX Runtime has an arena of its own by default, which keeps the most that a run has ever needed:
thirty segments and exit heads of a network hold thirty times that. A process may register one arena for all. A guest
does not do that to its host: ``runtime`` opens sessions as they are, and only the rooms that make bundles call
``share_scratch``.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

_log = logging.getLogger("pame.engines")
_LOCK = threading.Lock()
_USE = {"session.use_env_allocators": "1"}
_entries: dict[str, str] = {}  # of every session that is opened from now on
_wanted = False


def share_scratch() -> None:
    """Lets the sessions on the processor that this process opens from now on share one arena. Loads no backend."""
    global _wanted
    _wanted = True


def scratch_entries(ort: Any, errors: tuple[type[Exception], ...]) -> dict[str, str]:
    """Returns the entries of the configuration of a session, registering the arena where that is wanted.

    Args:
        ort: the module.
        errors: what it raises.
    """
    with _LOCK:
        if _wanted and not _entries:
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            try:
                ort.create_and_register_allocator(memory, None)
            except errors as error:
                _log.debug("no arena was registered, that of this process is used: %s", error)
            _entries.update(_USE)
        return dict(_entries)
