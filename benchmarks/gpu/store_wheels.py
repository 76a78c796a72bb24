"""Wheels, stored without compression so that one pass of xz sees their libraries, and without what no stage loads.

    python benchmarks/gpu/store_wheels.py FOLDER [ARCHITECTURE]

With an architecture (``90`` for an H100) the machine code for every other GPU is overwritten with zeros, which pack to
nothing: of ONNX Runtime's CUDA provider it is half. The driver looks for code by architecture and never reads the rest.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path

UNUSED = ("libtensorrt_plugins.so", "libonnxruntime_providers_tensorrt.so")
_FATBIN = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries behind it
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, bytes of the code, architecture
_MAGIC = 0xBA55ED50


def store_wheel(path: Path, architecture: int | None = None) -> None:
    """Rewrites a wheel in place."""
    slim = path.with_suffix(".slim")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(slim, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            if item.filename.endswith(UNUSED):
                continue
            data = source.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines()
                data = "\n".join(line for line in lines if not line.partition(",")[0].endswith(UNUSED)).encode() + b"\n"
            if architecture is not None and ".so" in Path(item.filename).name:
                data = blank_other_code(data, architecture)
            target.writestr(item.filename, data)
    slim.replace(path)


def blank_other_code(library: bytes, architecture: int) -> bytes:
    """Returns a library in which the code for other GPUs is zeros; the tables that lead to it stay as they are.

    Left alone is every fat binary that has nothing for this architecture.
    """
    changed, place = bytearray(library), -1
    while (place := library.find(struct.pack("<I", _MAGIC), place + 1)) >= 0:
        entries = _read_fatbin(library, place)
        if any(found == architecture for _, _, found in entries):
            for start, size, found in entries:
                if found != architecture:
                    changed[start : start + size] = bytes(size)
    return bytes(changed)


def _read_fatbin(library: bytes, place: int) -> list[tuple[int, int, int]]:
    """Returns (start of the code, its bytes, architecture) per entry; nothing where the magic is a coincidence."""
    if place + _FATBIN.size > len(library):
        return []
    _, version, header, size = _FATBIN.unpack_from(library, place)
    start, end = place + header, place + header + size
    if version != 1 or header != _FATBIN.size or end > len(library):
        return []
    entries = []
    while start + _ENTRY.size <= end:
        _, _, header, size, architecture = _ENTRY.unpack_from(library, start)
        if header < _ENTRY.size or start + header + size > end:
            return []
        entries.append((start + header, size, architecture))
        start += header + size
    return entries


def main(folder: str, architecture: str = "") -> int:
    """Rewrites every wheel of a folder."""
    for path in sorted(Path(folder).glob("*.whl")):
        store_wheel(path, int(architecture) if architecture else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
