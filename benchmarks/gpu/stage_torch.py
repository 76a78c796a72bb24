"""Stage h: the networks of stage d in torch, eager, as CUDA graphs and compiled, in float32 and TF32."""

from __future__ import annotations

from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.in_torch import add_torch_rows
from benchmarks.gpu.stages import Setting


def measure(record: Record, setting: Setting) -> None:
    """Measures every network at every batch size; what takes longest to compile comes last."""
    names = setting.networks or (("toy",) if setting.rehearsal else ("resnet50", "bert"))
    sizes = (8, 4) if setting.rehearsal else (128, 8, 32)
    for compiled in (False, True):
        for size in sizes:
            for name in names:
                add_torch_rows(record, setting, name, size, compiled=compiled)
