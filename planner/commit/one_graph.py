"""Plans as one graph: both forms written from a bundle, and the proof that a form answers as the runtime does.

In one form, ``If`` guards every stage behind an exit, so that it does not run where no row is left; in the other it
runs on no rows, where the network can do that. Which is faster depends on the network, and is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from artifacts import Artifact, BundleSpec, EngineError, GraphError, GraphSpec
from engines import GraphRunner
from export import PortableOutline, PortableStage, write_portable
from runtime import Result

GUARDED, FLAT = "If", "no rows"
"""The two forms, by what becomes of a stage that no row comes to."""
_CLOSE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2, "int8-symmetric": 5e-2}
"""How far confidences of one row may lie apart, and answers relative to the largest: another graph is optimised
elsewhere; by the precision of the network."""


def write_form(
    artifact: Artifact, spec: BundleSpec, form: str, path: Path, *, threshold: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> GraphSpec:  # fmt: skip
    """Writes the stages of a bundle as one ONNX file.

    Args:
        artifact: the bundle.
        spec: its content.
        form: ``If`` or ``no rows``.
        path: the file; weights of more than a gibibyte go into a file beside it.
        threshold: of all exits, in the place of their own.
        metadata: what the file says of itself.

    Returns:
        Its interface, as of ``export.write_portable``.
    """
    stages = [
        PortableStage(
            graph=stage.graph,
            path=artifact.path(stage.graph.file),
            threshold=stage.threshold if threshold is None or stage.threshold is None else threshold,
        )
        for stage in spec.stages
    ]
    outline = PortableOutline(
        name=spec.name, inputs=spec.inputs, outputs=spec.outputs, guarded=form == GUARDED, metadata=metadata or {}
    )
    return write_portable(stages, outline, path)


def why_not_flat(artifact: Artifact, spec: BundleSpec, folder: Path, batch: Mapping[str, np.ndarray]) -> str | None:
    """Tells why a stage cannot run on no rows; ``None`` where all of them can: all rows leave at the first exit."""
    path = folder / "empty.onnx"
    write_form(artifact, spec, FLAT, path, threshold=-1.0)
    try:
        with GraphRunner(path, threads=spec.plan.threads) as runner:
            runner.run(batch)
    except EngineError as error:
        return f"the network cannot run on no rows ({error})"
    return None


class Likeness:
    """How far the answers of a form are from the runtime's, row by row.

    Attributes:
        flips: how many rows left elsewhere, all with a confidence at a threshold.
        difference: the largest of an answer, relative to the largest answer.
    """

    def __init__(self, spec: BundleSpec, what: str) -> None:
        """``what`` names the form, for messages."""
        self._what = what
        self._close = _CLOSE[str(spec.settings.get("precision", "fp32"))]
        self._thresholds = [stage.threshold for stage in spec.stages]
        self.flips = 0
        self.difference = 0.0

    def compare(
        self, answers: Sequence[np.ndarray], exit_index: np.ndarray, confidence: np.ndarray, wanted: Result
    ) -> None:
        """Compares the answers to one batch.

        Raises:
            GraphError: a row is answered otherwise.
        """
        same = exit_index == wanted.exit_index
        for row in np.flatnonzero(~same):
            limit = self._thresholds[min(exit_index[row], wanted.exit_index[row])]
            if limit is None or abs(limit - _nearer(confidence[row], wanted.confidence[row], limit)) > self._close:
                raise GraphError(
                    f"{self._what} lets a row leave at exit {exit_index[row]}, the runtime at "
                    f"{wanted.exit_index[row]}, and its confidence is not at the threshold; please report it"
                )
        expected = wanted.outputs if isinstance(wanted.outputs, tuple) else (wanted.outputs,)
        for answer, right in zip(answers, expected, strict=True):
            self._compare_answers(answer[same], np.asarray(right)[same])
        self.flips += int((~same).sum())

    def _compare_answers(self, answers: np.ndarray, wanted: np.ndarray) -> None:
        if not len(wanted):
            return
        largest = max(float(np.abs(wanted).max()), 1.0)
        difference = float(np.abs(answers.astype(np.float64) - wanted).max()) / largest
        self.difference = max(self.difference, difference)
        if difference > self._close:
            raise GraphError(
                f"{self._what} answers otherwise than the runtime, by {difference:.1e} of the largest answer; please "
                "report it"
            )


def _nearer(a: float, b: float, limit: float) -> float:
    return a if abs(a - limit) < abs(b - limit) else b
