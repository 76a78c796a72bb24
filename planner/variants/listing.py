"""The variants of a network: which engines compute in which precisions, and where each keeps its artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts import PRECISIONS, RunFolder, UsageError, unknown_name, unknown_precision
from engines import BACKENDS, choose_backend
from export import CALIBRATED

ARITHMETICS = tuple(dict.fromkeys(name.rpartition("-")[2] for name in BACKENDS if name.endswith("-bf16")))
"""Precisions that are an engine's and not a graph's."""
PRECISION_NAMES = (*PRECISIONS, *ARITHMETICS)
_MIXED = tuple(f"{graph}+{arithmetic}" for graph in sorted(CALIBRATED) for arithmetic in ARITHMETICS)
FOLDER = "variants"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A network in one precision on one engine.

    Attributes:
        engine: as it was asked for.
        precision: as it was asked for, of the graph or of the engine's arithmetic; ``int8+bf16`` is a graph in int8
            whose floating-point parts the engine computes in bfloat16.
        backend: the engine backend.
        graph: the precision of the graph, of ``artifacts.PRECISIONS``.
        run: where its artifacts lie.
    """

    engine: str
    precision: str
    backend: str
    graph: str
    run: RunFolder

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A variant that there is none of, and the reason."""

    label: str
    reason: str


def list_variants(
    run: RunFolder, engines: Sequence[str], precisions: Sequence[str]
) -> tuple[tuple[Variant, ...], tuple[LeftOut, ...]]:
    """Returns every engine in every precision, and what no engine computes in.

    Where a quantised precision of the graph and an arithmetic of the engine are asked for, so is the one in the other.

    Args:
        run: of the network; variants lie in a folder of it.
        engines: of ``engines.BACKENDS``.
        precisions: of ``PRECISION_NAMES``, or two with a plus: of the graph, of the arithmetic.

    Raises:
        UsageError: a name is unknown, or no combination is left.
    """
    for name in engines:
        if name not in BACKENDS:
            raise unknown_name("engine backend (--engines)", name, BACKENDS)
    for name in precisions:
        if name not in (*PRECISION_NAMES, *_MIXED):
            raise unknown_precision("precision (--precisions)", name, (*PRECISION_NAMES, *_MIXED))
    asked = (*precisions, *(mixed for mixed in _MIXED if set(mixed.split("+")) <= set(precisions)))
    found: dict[tuple[str, str], Variant] = {}
    left_out = []
    for engine in engines:
        for precision in asked:
            try:
                backend, graph = choose_backend(engine, precision)
            except UsageError as error:
                if precision in _MIXED and precision not in precisions:
                    continue  # what is left out of it is said of its arithmetic
                left_out.append(LeftOut(label=f"{engine} {precision}", reason=str(error)))
                continue
            place = RunFolder(root=run.root / FOLDER / f"{engine}-{precision}")
            variant = Variant(
                engine=engine, precision=precision, backend=backend, graph=graph or PRECISIONS[0], run=place
            )
            found.setdefault((variant.backend, variant.graph), variant)
    if not found:
        raise UsageError(f"there is nothing to plan for: {'; '.join(item.reason for item in left_out)}")
    return tuple(found.values()), tuple(left_out)
