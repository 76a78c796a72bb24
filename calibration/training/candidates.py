"""Exit candidates of an imported network: a few cuts, spread evenly over measured time, with heads that are cheap.

An exit is worth its place where much time lies behind it and its head costs little of that. Every cut of a deep network
is too many: each would be trained, timed and searched. So the segments are timed with the engines that will run, and
of the cuts those are taken that leave no long stretch of time between two of them. A head that takes more than a given
share of the time behind it is replaced by the next smaller one; where even the smallest takes more, the cut is none.
What takes next to no time is always cheap: in a tiny network a head of any size is mostly the calls that run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from artifacts import GraphError, Model, RunFolder, open_scratch
from calibration.tracing.all_exits import EngineChoice
from calibration.tracing.part_times import time_parts
from export import HEAD_SIZES, build_head_ladders, keep_cuts, spread_evenly, write_heads

NO_TIME_MS = 0.25
"""Milliseconds for a batch of ``TIMED_ROWS`` rows that no head is too dear for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRules:
    """What makes a cut an exit candidate.

    Attributes:
        most: how many there are at most.
        head_share: of the time behind a cut, what its head may take.
    """

    most: int = 12
    head_share: float = 0.05


def settle_candidates(
    run: RunFolder, model: Model, engine: EngineChoice, rules: CandidateRules, *, report: Callable[[str], None]
) -> Model:
    """Publishes an imported network again with its exit candidates alone, once; other models stay as they are.

    Args:
        run: where the model lies.
        model: with cuts.
        engine: backend and threads of the engines that are timed.
        rules: how many candidates there may be, and how dear.
        report: receives what was chosen.

    Raises:
        GraphError: no cut can have a head that is cheap enough.
    """
    spec = model.spec
    if spec.family != "onnx" or spec.heads or HEAD_SIZES in spec.settings or len(spec.cuts) < 2:
        return model
    with open_scratch(run.training / "timing") as folder:
        ends = _time_cuts(model, folder, engine)
        total = ends.pop()
        chosen = [spec.cuts[index].name for index in spread_evenly(ends[:-1], total, rules.most)]
        behind = {cut.name: total - end for cut, end in zip(spec.cuts, ends, strict=True)}
        sizes = _size_heads(model, {name: behind[name] for name in chosen}, rules, folder, engine, report)
    if not sizes:
        raise GraphError(
            f"{model.artifact.folder}: at none of {len(chosen)} cuts is there an exit head that takes at most "
            f"{rules.head_share:.0%} of the time behind it; raise --head-share, or deploy the network without exits"
        )
    report(
        f"{len(sizes)} of {len(spec.cuts) - 1} cuts are exit candidates, spread over the measured time of the "
        f"network: {', '.join(f'{name} at {1 - behind[name] / total:.0%}' for name in sizes)}"
    )
    return keep_cuts(
        model, [*sizes, spec.cuts[-1].name], settings={HEAD_SIZES: ",".join(map(str, sizes.values()))}
    )  # fmt: skip


def _time_cuts(model: Model, folder: Path, engine: EngineChoice) -> list[float]:
    """Returns when each cut is reached, and the time of the whole chain last, in milliseconds."""
    spec = model.spec
    graphs = (*spec.segments, *([] if spec.final_head is None else [spec.final_head]))
    return list(accumulate(time_parts([(model.path(graph), graph) for graph in graphs], folder / "segments", engine)))


def _size_heads(
    model: Model, behind: Mapping[str, float], rules: CandidateRules, folder: Path, engine: EngineChoice,
    report: Callable[[str], None],
) -> dict[str, int]:  # fmt: skip
    """Returns the cuts that can have a head -> the largest that is cheap enough, by its position in the ladder."""
    names = list(behind)
    ladders = build_head_ladders(model, names)
    found: dict[str, int] = {}
    left = list(names)
    for rung in range(max(map(len, ladders.values()))):
        tried = [name for name in left if rung < len(ladders[name])]
        if not tried:
            break
        place = folder / f"heads_{rung}"
        graphs = write_heads(model, {name: ladders[name][rung] for name in tried}, place)
        times = time_parts([(place / graphs[name].file, graphs[name]) for name in tried], place / "engines", engine)
        cheap = {
            name
            for name, ms in zip(tried, times, strict=True)
            if ms <= max(NO_TIME_MS, rules.head_share * behind[name])
        }
        found.update(dict.fromkeys(cheap, rung))
        left = [name for name in left if name not in cheap]
    if left:
        report(
            f"no exit at {', '.join(left)}: even the smallest head takes more than {rules.head_share:.0%} of the time "
            "behind it (--head-share)"
        )
    return {name: found[name] for name in names if name in found}
