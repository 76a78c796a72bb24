"""Choice of a confidence: of several recipes for the same answers, the one that ranks the loss best.

At every exit the samples are put in order by the confidence, the surest first, and the mean loss of those that would
leave is taken over every share that might: the area under the risk-coverage curve (Geifman, Uziel, El-Yaniv, ICLR
2019), where the loss is how much better the final head answers. The recipe with the smallest area, on average over the
exits, is taken.

The samples are of the train part. They play no role in a certificate, so the choice costs it nothing, whatever the
seed by which the planner halves the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from artifacts import FINAL_HEAD, Model, Task
from calibration.data.samples import Samples, in_chunks
from export import MultiExitNet, Scorer, publish_net, rebuild_net, recipes_like

AUTO = "auto"
_MOST_SAMPLES = 400
_ROWS = 32  # at once: masks of all exits have to fit into memory


def settle_confidence(
    model: Model, samples: Samples, task: Task, wanted: str, *, report: Callable[[str], None]
) -> Model:
    """Publishes a family's model again with another confidence.

    Args:
        model: with its trained exit heads.
        samples: with labels; its train part is looked at.
        task: judges the answers.
        wanted: a recipe's name, or ``auto``.
        report: receives how well each ranks.

    Raises:
        GraphError: the model was imported.
        UsageError: there is no such recipe for these answers, or no labels to choose by.
    """
    own = str(model.spec.settings.get("confidence_recipe") or task.confidence)
    net = rebuild_net(model)
    if wanted == AUTO:
        areas = rank_confidences(net, samples, task)
        wanted = min(areas, key=lambda name: areas[name])
        listed = ", ".join(f"{name} {area:.4f}" for name, area in sorted(areas.items(), key=lambda pair: pair[1]))
        report(f"confidence: {wanted} ranks the loss of the exits best (area under risk and coverage: {listed})")
    if wanted == own:
        return model
    manifest = model.artifact.manifest
    return publish_net(model, net, inputs=manifest.inputs, trained=tuple(model.spec.heads), confidence=wanted)


def rank_confidences(net: MultiExitNet, samples: Samples, task: Task) -> dict[str, float]:
    """Returns recipe -> mean over the exits of the area under its risk-coverage curve; smaller is better."""
    available = samples.indices_of("train")
    indices = available[:: max(1, len(available) // _MOST_SAMPLES)]
    quality: dict[str, list[np.ndarray]] = {}
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    scorer: Scorer | None = None
    net.eval()
    try:
        for chunk in in_chunks(indices, _ROWS):
            targets = samples.targets(chunk)
            (inputs,) = samples.inputs(chunk).values()
            with torch.inference_mode():
                exits, final = net(torch.from_numpy(inputs))
            for name, answers in {**exits, FINAL_HEAD: final}.items():
                array = np.ascontiguousarray(answers.numpy())
                quality.setdefault(name, []).append(task.quality((array,), targets))
                if name == FINAL_HEAD:
                    continue
                if scorer is None:
                    scorer = Scorer(array.shape[1:], recipes=recipes_like(task.confidence), terms="logits")
                for recipe, found in scorer.score(array).items():
                    scores.setdefault((recipe, name), []).append(found)
    finally:
        if scorer is not None:
            scorer.close()
    joined = {name: np.concatenate(parts).astype(np.float64) for name, parts in quality.items()}
    return _mean_areas(joined, {key: np.concatenate(parts) for key, parts in scores.items()})


def _mean_areas(
    quality: Mapping[str, np.ndarray], scores: Mapping[tuple[str, str], np.ndarray]
) -> dict[str, float]:  # fmt: skip
    areas: dict[str, list[float]] = {}
    for (recipe, name), confidence in scores.items():
        losses = np.maximum(quality[FINAL_HEAD] - quality[name], 0)
        areas.setdefault(recipe, []).append(risk_area(losses, confidence))
    return {recipe: float(np.mean(found)) for recipe, found in areas.items()}


def risk_area(losses: np.ndarray, confidence: np.ndarray) -> float:
    """Returns the mean, over every share of the samples, of the mean loss of the surest of them.

    Args:
        losses: (n,).
        confidence: (n,); of equal ones the order is that of the samples.
    """
    ordered = losses[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())
