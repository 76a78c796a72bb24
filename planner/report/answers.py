"""Answers of dense networks as pictures: masks and skeletons of the exits beside those of the final head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts import FINAL_HEAD_LABEL, ExitPlan, Model, PameError, RunFolder, find_keypoints
from calibration import EngineChoice, ImageSamples, SegmentRunner, load_run_data
from planner.report.drawing import SMALL, literal, new_figure

DENSE_TASKS = ("segmentation", "pose")
_LOOKED_AT, _SHOWN = 24, 4
_TINTED = 0.6
_MOST_EXITS = 3
_MOST_NAMED = 11  # classes; more do not fit on a line
_LIMBS = (
    ("ankle", "knee"), ("knee", "hip"), ("hip", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"),
)  # fmt: skip
_SIDES = (("left_", "#d55e00"), ("right_", "#0072b2"))
_MIDDLE = (("neck", "head_top"), ("upper_neck", "head_top"), ("thorax", "upper_neck"), ("pelvis", "thorax"))
_ACROSS = (("left_hip", "right_hip"), ("left_shoulder", "right_shoulder"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """A few samples with the answers of the plan's exits and of the final head.

    Attributes:
        task: ``segmentation`` or ``pose``.
        pictures: (n, H, W, 3) uint8, the one that the first exit is surest of first.
        columns: names of the exits, and last of the final head.
        answers: per column (n, ...): classes (n, H, W), or keypoints (n, J, 3).
        leaves: (n,) the column that answers each sample under the plan.
        names: of the joints, or of the classes; none where they are not known.
    """

    task: str
    pictures: np.ndarray
    columns: tuple[str, ...]
    answers: tuple[np.ndarray, ...]
    leaves: np.ndarray
    names: tuple[str, ...]


def collect_examples(
    run: RunFolder, model: Model, plan: ExitPlan, *, report: Callable[[str], None]
) -> Examples | None:  # fmt: skip
    """Runs a few samples of the calibrate part through the network and the plan's exits.

    Returns:
        ``None`` for other tasks, a plan without exits, samples that are no pictures, or data that is not there any
        more; the last is said.
    """
    if model.spec.task not in DENSE_TASKS or not plan.exits:
        return None
    try:
        samples = load_run_data(run, report=lambda _: None)
    except PameError as error:
        report(f"no pictures of answers, since the data cannot be read: {error}")
        return None
    if not isinstance(samples, ImageSamples) or samples.preprocessing.channels not in (1, 3):
        return None
    available = samples.indices_of("calibrate")
    indices = available[:: max(1, len(available) // _LOOKED_AT)][:_LOOKED_AT]
    wanted = [exit_.cut for exit_ in plan.exits][:_MOST_EXITS]
    engine = EngineChoice(backend=plan.backend, threads=plan.threads)
    with SegmentRunner(model, run.engines, engine, rows=len(indices), with_heads=True) as runner:
        answered = runner.answers(runner.run(samples.inputs(indices)))
    places = [[cut.name for cut in model.spec.candidates].index(name) for name in wanted]
    chosen = [*(answered[place] for place in places), answered[-1]]
    order = np.argsort(-chosen[0][1], kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int)]
    sure = [found[1] >= exit_.threshold for exit_, found in zip(plan.exits, chosen, strict=False)]
    leaves = np.stack([*sure[: len(wanted)], np.ones(len(indices), bool)]).argmax(axis=0)
    pixels = samples.pixels(indices[shown])
    return Examples(
        task=model.spec.task,
        pictures=_as_pictures(pixels, samples),
        columns=(*wanted, FINAL_HEAD_LABEL),
        answers=tuple(_as_shown(model.spec.task, answers[0][shown]) for answers, _ in chosen),
        leaves=leaves[shown],
        names=samples.classes,
    )


def _as_pictures(pixels: np.ndarray, samples: ImageSamples) -> np.ndarray:
    found = pixels if samples.preprocessing.layout == "NHWC" else pixels.transpose(0, 2, 3, 1)
    if samples.preprocessing.channel_order == "BGR":
        found = found[..., ::-1]
    return np.repeat(found, 3, axis=3) if found.shape[3] == 1 else found


def _as_shown(task: str, answers: np.ndarray) -> np.ndarray:
    if task == "pose":
        return find_keypoints(answers)
    return answers.argmax(axis=1) if answers.ndim == 4 else answers


def draw_answers(examples: Examples) -> Any:
    """Draws one row per sample: the picture, what each exit answers, and what the final head does."""
    count, columns = len(examples.pictures), len(examples.columns) + 1
    height, width = examples.pictures.shape[1:3]
    named = examples.names if examples.task == "segmentation" and len(examples.names) <= _MOST_NAMED else ()
    figure = new_figure(0.4 + 0.25 * bool(named) + count * 9.0 / columns * height / width)
    grid = figure.subplots(count, columns, squeeze=False)
    for row, picture in enumerate(examples.pictures):
        _show(grid[row, 0], picture, "picture" if row == 0 else "", bold=False)
        for column, (name, answers) in enumerate(zip(examples.columns, examples.answers, strict=True)):
            axes = grid[row, column + 1]
            title = f"{name}{' (leaves here)' if examples.leaves[row] == column else ''}"
            if examples.task == "segmentation":
                _show(axes, _tint(picture, answers[row]), title, bold=examples.leaves[row] == column)
            else:
                _show(axes, picture, title, bold=examples.leaves[row] == column)
                _draw_skeleton(axes, answers[row], examples.names, (height, width))
    if named:
        _name_colours(figure, named)
    return figure


def _name_colours(figure: Any, names: Sequence[str]) -> None:
    """Adds a legend of the classes below the pictures."""
    from matplotlib.patches import Patch

    colours = class_colours(len(names))
    patches = [Patch(color=colour, label=literal(name)) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(names), fontsize=SMALL, frameon=False)


def _show(axes: Any, picture: np.ndarray, title: str, *, bold: bool) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(literal(title), fontsize=SMALL, fontweight="bold" if bold else "normal", pad=3)


def _tint(picture: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns a picture under the colours of its classes."""
    colours = 255 * class_colours(int(classes.max(initial=0)) + 1)[classes.astype(int)]
    mixed: np.ndarray = (1 - _TINTED) * picture + _TINTED * colours
    return mixed.astype(np.uint8)


def class_colours(count: int) -> np.ndarray:
    """Returns the colours of classes, (count, 3) in [0, 1], by golden steps around the circle of hues."""
    from matplotlib.colors import hsv_to_rgb

    numbers = np.arange(count)
    hues = np.stack([numbers * 0.618 % 1, np.full(count, 0.75), 0.95 - 0.35 * (numbers % 2)], axis=1)
    colours: np.ndarray = hsv_to_rgb(hues)
    return colours


def _draw_skeleton(axes: Any, joints: np.ndarray, names: Sequence[str], size: tuple[int, int]) -> None:
    height, width = size
    x, y = joints[:, 0] * width - 0.5, joints[:, 1] * height - 0.5
    place = {name: index for index, name in enumerate(names)}
    pairs = [(f"{side}{a}", f"{side}{b}", colour) for side, colour in _SIDES for a, b in _LIMBS]
    pairs += [(a, b, "#f0e442") for a, b in (*_MIDDLE, *_ACROSS)]
    for a, b, colour in pairs:
        if a in place and b in place:
            ends = [place[a], place[b]]
            axes.plot(x[ends], y[ends], color=colour, linewidth=2)
    axes.scatter(x, y, s=5, color="white", edgecolors="black", linewidths=0.4, zorder=3)
