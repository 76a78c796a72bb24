"""``EngineInsight``: activation memory per profile and layers of a built engine, from TensorRT itself. Needs a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.trt.files import EngineFiles
from engines.trt.library import deserialise_engine, load_tensorrt, trt_logger


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInsight:
    """Memory and layers of one serialised engine.

    Attributes:
        file: the engine.
        activation_bytes: scratch memory of a run, per profile.
        layers: TensorRT's descriptions of its layers, in the order of execution.
    """

    file: str
    activation_bytes: tuple[int, ...]
    layers: tuple[str, ...]


def inspect_trt(folder: Path, flavour: str, files: EngineFiles) -> tuple[EngineInsight, ...]:
    """Deserialises the engines in a verified and vetted folder and asks TensorRT about each.

    Raises:
        EngineError: TensorRT refuses an engine.
    """
    trt, (logger, _) = load_tensorrt(flavour), trt_logger(flavour)
    runtime = trt.Runtime(logger)
    found = []
    for file in files.files:
        engine = deserialise_engine(flavour, runtime, folder / file)
        found.append(
            EngineInsight(
                file=file,
                activation_bytes=tuple(
                    int(engine.get_device_memory_size_for_profile_v2(index))
                    for index in range(engine.num_optimization_profiles)
                ),
                layers=_layers(trt, engine),
            )
        )
    return tuple(found)


def _layers(trt: Any, engine: Any) -> tuple[str, ...]:
    inspector = engine.create_engine_inspector()
    lines = [
        inspector.get_layer_information(index, trt.LayerInformationFormat.ONELINE) for index in range(engine.num_layers)
    ]
    return tuple(" ".join(line.split()) for line in lines)
