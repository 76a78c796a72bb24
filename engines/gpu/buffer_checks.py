"""Buffer checks of engines on a GPU: those of the host, for arrays in its memory."""

from __future__ import annotations

from collections.abc import Mapping

from artifacts import EngineError, EngineKey, GraphSpec
from engines.gpu.arrays import DeviceArray
from engines.host.buffer_checks import check_layout, count_rows, specs_by_name


def check_device_buffers(
    graph: GraphSpec, key: EngineKey, buffers: Mapping[str, object], *, device: int
) -> tuple[dict[str, DeviceArray], int]:
    """As ``check_host_buffers`` for arrays on GPU ``device``."""
    arrays: dict[str, DeviceArray] = {}
    for name, spec in specs_by_name(graph, buffers).items():
        array, where = buffers[name], f"{graph.name}: buffer '{name}'"
        if not isinstance(array, DeviceArray) or array.device != device:
            raise EngineError(
                f"{where} is a {type(array).__name__}, expected an array on GPU {device} from Device.allocate"
            )
        check_layout(array, spec, where)
        arrays[name] = array
    return arrays, count_rows(graph, key, arrays)
