"""System shared memory: regions that clients of the same machine register, to pass large tensors without a socket.

Regions are read and written by system calls and not mapped: a client that shortens its region would end the process
that has it mapped, and could change values between their check and their use.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from artifacts import InputError, RefusedError
from runtime.oip.calls import OutputTensor, SharedRegion
from runtime.oip.datatypes import to_binary

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
_KEY = re.compile(r"/?[\w.-]{1,200}", re.ASCII)
_MOST_REGIONS = 256


@dataclass(slots=True)
class _Region:
    key: str
    offset: int
    byte_size: int
    descriptor: int


class SharedMemory:
    """The regions of a server; used from its event loop."""

    def __init__(self, *, allowed: bool, limit: int) -> None:
        """Args: ``allowed``: whether there is any; ``limit``: bytes of one tensor."""
        self._allowed = allowed
        self._limit = limit
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens a region under a name.

        Raises:
            RefusedError: shared memory is not allowed, or there are too many regions.
            InputError: there is no such memory, it is too small, or the name is taken.
        """
        self._check_allowed()
        if not name or name in self._regions:
            raise InputError(f"shared memory region '{name}' already in manager" if name else "a region needs a name")
        if len(self._regions) >= _MOST_REGIONS:
            raise RefusedError(f"there are {_MOST_REGIONS} regions already; unregister some", reason="queue_full")
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise InputError(f"'{key[:200]}' is no key of shared memory")
        try:
            descriptor = os.open(_FOLDER / key.lstrip("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(f"Unable to open shared memory region: '{key}' ({error.strerror})") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or byte_size < 1 or offset < 0 or offset + byte_size > found.st_size:
            os.close(descriptor)
            raise InputError(f"shared memory '{key}' has {found.st_size} bytes; expected {byte_size} from {offset} on")
        self._regions[name] = _Region(key, offset, byte_size, descriptor)

    def unregister(self, name: str = "") -> None:
        """Closes a region, or all; one that is not there is nothing to do."""
        for closed in [name] if name else list(self._regions):
            if (region := self._regions.pop(closed, None)) is not None:
                os.close(region.descriptor)

    def status(self, name: str = "") -> list[dict[str, object]]:
        """Returns the regions, or the one of a name.

        Raises:
            RefusedError: there is no such region.
        """
        if name and name not in self._regions:
            raise RefusedError(f"Unable to find system shared memory region: '{name[:200]}'", reason="not_found")
        return [
            {"name": found, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
            for found, region in self._regions.items()
            if name in ("", found)
        ]

    def read(self, wanted: SharedRegion) -> memoryview:
        """Returns a copy of a part of a region.

        Raises:
            InputError: there is no such region, or it is shorter.
            RefusedError: that is more than a tensor may have, or shared memory is not allowed.
        """
        region = self._find(wanted)
        if wanted.byte_size > self._limit:
            message = f"{wanted.byte_size} bytes of shared memory are more than {self._limit}; raise --max-body-mb"
            raise RefusedError(message, reason="too_large")
        data = os.pread(region.descriptor, wanted.byte_size, region.offset + wanted.offset)
        if len(data) < wanted.byte_size:
            raise InputError(f"shared memory region '{wanted.name}' has been shortened")
        return memoryview(data)

    def write(self, output: OutputTensor) -> None:
        """Writes a tensor to its region, whose size becomes that of the tensor; errors as ``read``."""
        wanted = output.region
        if wanted is None:
            return
        region, data = self._find(wanted), memoryview(to_binary(output.values))
        if len(data) > wanted.byte_size:
            raise InputError(f"output '{output.name}' has {len(data)} bytes, its shared memory {wanted.byte_size}")
        try:
            os.pwrite(region.descriptor, data, region.offset + wanted.offset)
        except OSError as error:
            raise InputError(f"shared memory region '{wanted.name}' cannot be written: {error.strerror}") from error
        output.region = SharedRegion(name=wanted.name, offset=wanted.offset, byte_size=len(data))

    def _find(self, wanted: SharedRegion) -> _Region:
        self._check_allowed()
        region = self._regions.get(wanted.name)
        if region is None:
            raise InputError(f"Unable to find shared memory region: '{wanted.name[:200]}'")
        if wanted.offset + wanted.byte_size > region.byte_size:
            raise InputError(
                f"shared memory region '{wanted.name}' has {region.byte_size} bytes; expected {wanted.byte_size} from "
                f"{wanted.offset} on"
            )
        return region

    def _check_allowed(self) -> None:
        if not self._allowed:
            message = "shared memory is not allowed; send the tensors, or start the server with --shared-memory"
            raise RefusedError(message, reason="forbidden")
