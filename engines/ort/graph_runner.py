"""``GraphRunner``: any ONNX graph on the processor, for parity reports and probing; without cache or bindings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from artifacts import EngineError, unknown_name
from engines.host.forks import check_process
from engines.ort.session import open_session, ort_errors, session_options, translate_error


class GraphRunner:
    """An ONNX graph, opened once to be run many times with fresh arrays.

    Args:
        onnx: the file, or its bytes.
        threads: threads of a run; ``None``: as many as onnxruntime chooses.

    Raises:
        EngineError: onnxruntime refuses the graph.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, onnx: Path | bytes, *, threads: int | None = None) -> None:
        self._name = str(onnx) if isinstance(onnx, Path) else f"a graph of {len(onnx)} bytes"
        model = str(onnx) if isinstance(onnx, Path) else onnx
        self._process = os.getpid()
        self._session: Any = open_session(model, session_options(threads), what=f"load {self._name}")
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())
        self.output_types = {value.name: str(value.type) for value in self._session.get_outputs()}

    def run(self, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the graph.

        Args:
            inputs: name -> array for every input.
            outputs: the outputs to compute; ``None`` for all.

        Returns:
            Output name -> fresh array.

        Raises:
            UsageError: an output is unknown.
            EngineError: an input is missing or unknown, onnxruntime fails, or the runner is closed.
        """
        if self._session is None:
            raise EngineError(f"{self._name}: the runner is closed; open it again")
        check_process(self._process, self._name)
        requested = list(self.output_names if outputs is None else outputs)
        for name in requested:
            if name not in self.output_names:
                raise unknown_name(f"output of {self._name}", name, self.output_names)
        try:
            values = self._session.run(requested, dict(inputs))
        except ort_errors() as error:
            raise translate_error(error, f"run {self._name}") from error
        return dict(zip(requested, values, strict=True))

    def close(self) -> None:
        """Frees the graph; may be called twice."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run_graph(
    onnx: Path | bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int | None = None,
    outputs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Opens a graph, runs it once and closes it; arguments and errors as those of ``GraphRunner``."""
    with GraphRunner(onnx, threads=threads) as runner:
        return runner.run(inputs, outputs=outputs)
