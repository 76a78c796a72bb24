"""Building OpenVINO engines: the graph is compiled once, for this processor, and the compiled model is stored."""

from __future__ import annotations

from pathlib import Path

from artifacts import EngineError, EngineKey
from engines.options import BuildOptions, make_graph_key
from engines.ov.session import HINTS, check_arithmetic, compile_model, identify_openvino, read_model, translate_error

BLOB_FILE = "compiled.blob"


class OvBuilder:
    """Compiles graphs for OpenVINO on the processor, in the arithmetic of a backend."""

    def __init__(self, backend: str, options: BuildOptions) -> None:
        self._backend = backend
        self._options = options

    @property
    def backend(self) -> str:
        return self._backend

    def key(self, onnx: Path) -> EngineKey:
        """Returns the key of the engine that ``build`` would make; errors as ``make_graph_key``.

        Raises:
            EngineError: the processor has no such arithmetic.
        """
        check_arithmetic(self._backend)
        recorded = {"inference_precision": HINTS[self._backend], "pinning": "off", "streams": "1"}
        return make_graph_key(
            onnx, self._options, backend=self._backend, identify=identify_openvino, recorded=recorded
        )  # fmt: skip

    def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
        """Writes the compiled model into ``folder``.

        Raises:
            EngineError: OpenVINO refuses the graph, or its batch axis is fixed.
        """
        del key
        model = read_model(str(onnx), what=f"load {onnx}")
        fixed = [value.any_name for value in model.inputs if value.partial_shape[0].is_static]
        if fixed:
            raise EngineError(
                f"{onnx} cannot be built for any batch size: the batch axis of {', '.join(fixed)} is fixed. Export it "
                "with a dynamic batch axis"
            )
        compiled = compile_model(model, self._backend, what=f"compile {onnx}")
        try:
            exported = compiled.export_model()
        except (RuntimeError, ValueError) as error:
            raise translate_error(error, f"export {onnx}") from error
        (folder / BLOB_FILE).write_bytes(exported.getbuffer())
