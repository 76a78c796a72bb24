"""Looking at the tensors of a graph on OpenVINO: a runner behind Polygraphy's seam, which has none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np

from engines.host.debugging import load_polygraphy
from engines.ov.session import compile_model, load_openvino
from engines.protocols import ModelLoader


def make_ov_runner(backend: str, model: ModelLoader, label: str) -> Any:
    """Returns a runner on the processor, in the arithmetic of a backend."""
    base = load_polygraphy("backend.base").BaseRunner
    metadata = load_polygraphy("common").TensorMetadata

    class OpenVinoRunner(base):  # type: ignore[misc,valid-type]  # the base is loaded when it is needed
        """A compiled model as Polygraphy runs it."""

        def activate_impl(self) -> None:
            graph = load_openvino().Core().read_model(model())
            self._request = compile_model(graph, backend, what=f"compile {label}").create_infer_request()

        def get_input_metadata_impl(self) -> Any:
            found = metadata()
            for value in self._request.get_compiled_model().inputs:
                shape = [size.get_length() if size.is_static else None for size in value.partial_shape]
                found.add(value.any_name, np.dtype(value.element_type.to_dtype()), shape)
            return found

        def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> Any:
            started = perf_counter()
            answered = self._request.infer(dict(feed_dict))
            self.inference_time = perf_counter() - started
            return OrderedDict(
                (name, np.array(array)) for output, array in answered.to_dict().items() for name in output.get_names()
            )

        def deactivate_impl(self) -> None:
            del self._request

    return OpenVinoRunner(name=label)
