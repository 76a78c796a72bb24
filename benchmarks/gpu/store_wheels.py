"""Wheels, stored without compression so that one pass of xz sees their libraries, and without what no stage loads.

python benchmarks/gpu/store_wheels.py FOLDER
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

UNUSED = ("libtensorrt_plugins.so", "libonnxruntime_providers_tensorrt.so")


def store_wheel(path: Path) -> None:
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
            target.writestr(item.filename, data)
    slim.replace(path)


def main(folder: str) -> int:
    """Rewrites every wheel of a folder."""
    for path in sorted(Path(folder).glob("*.whl")):
        store_wheel(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
