"""Stages: a run of segments and an exit head, merged into one graph."""

from __future__ import annotations

from pathlib import Path

from artifacts import GraphSpec, Model


def merge_stage(model: Model, *, after: str | None, until: str | None, path: Path) -> GraphSpec:
    """Merges the segments between two cuts and the exit head (or the final head) into one ONNX file.

    Args:
        model: the model folder.
        after: the cut where the stage starts; ``None``: at the network's inputs.
        until: the cut whose exit head ends the stage; ``None``: on to the network's outputs.
        path: the file to write.

    Returns:
        The stage: inputs are the tensors of cut ``after`` that are needed here; outputs the tensors of cut ``until``
        that are made here, the answers and the confidence.

    Raises:
        UsageError: no such cut, or ``until`` does not lie behind ``after``.
        GraphError: cut ``until`` has no trained exit head.
    """
    raise NotImplementedError
