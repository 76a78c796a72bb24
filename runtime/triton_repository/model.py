"""A bundle behind Triton's Python backend, which imports it from the model.py of the model repository.

Triton's dynamic batcher hands over several requests at once. They are answered as one batch, in which rows leave early;
where one of them is refused (NaN, for instance), each is answered by itself, so that only that one fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import InputError, PameError
from runtime import Result, Runtime


class TritonPythonModel:
    """The model that Triton makes an instance of."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle beside this file."""
        import triton_python_backend_utils as backend

        self._backend: Any = backend
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        threads = int(parameters["threads"]) if "threads" in parameters else None
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        self._runtime = Runtime.load(bundle, threads=threads, device=device)
        self._inputs = [tensor.name for tensor in self._runtime.spec.inputs]
        self._outputs = [(out["name"], backend.triton_string_to_numpy(out["data_type"])) for out in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers requests, each with a response of its own."""
        read = [self._read(request) for request in requests]
        counts = [len(arrays[0]) for arrays in read]
        if len({tuple(array.shape[1:] for array in arrays) for arrays in read}) == 1:
            try:
                whole = self._runtime.run([np.concatenate(arrays) for arrays in zip(*read, strict=True)])
            except InputError:
                pass  # of one of them; see below
            except PameError as error:
                return [self._refuse(error) for _ in requests]
            else:
                stops = np.cumsum(counts)
                return [self._answer(whole, slice(stop - n, stop)) for stop, n in zip(stops, counts, strict=True)]
        return [self._answer_alone(arrays) for arrays in read]

    def finalize(self) -> None:
        """Frees the engines."""
        self._runtime.close()

    def _read(self, request: Any) -> list[np.ndarray]:
        find = self._backend.get_input_tensor_by_name
        return [find(request, name).as_numpy() for name in self._inputs]

    def _answer_alone(self, arrays: Sequence[np.ndarray]) -> Any:
        try:
            return self._answer(self._runtime.run(list(arrays)), slice(None))
        except PameError as error:
            return self._refuse(error)

    def _answer(self, result: Result, rows: slice) -> Any:
        outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
        found = [*(np.asarray(output) for output in outputs), result.exit_index, result.confidence]
        tensors = [
            self._backend.Tensor(name, np.ascontiguousarray(array[rows], dtype=dtype))
            for (name, dtype), array in zip(self._outputs, found, strict=False)
        ]
        return self._backend.InferenceResponse(output_tensors=tensors)

    def _refuse(self, error: PameError) -> Any:
        return self._backend.InferenceResponse(error=self._backend.TritonError(str(error)))
