"""NetworkCheck: the full network asked first, whether it is any good on the samples as they are prepared.

At chance, or clearly better on the same pixels prepared in another way, the labels, the order of the classes or the
preprocessing are not what the network was trained with. Exits and thresholds would be worth nothing then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from artifacts import Model, Preprocessing, Task
from calibration.data.samples import ImageSamples, Samples, in_chunks
from calibration.tracing.all_exits import SegmentRunner
from calibration.tracing.metrics import MetricSum

ASKED_SAMPLES = 256
_CLEARLY = 0.1  # of the metric


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCheck:
    """How the full network does on a few samples.

    Attributes:
        samples: how many were asked.
        metric: of its answers, as the samples are prepared.
        chance: metric of the most frequent class as the only answer; ``None`` where answers are not classes.
        others: the metric under other ways to prepare the same pixels, by their descriptions; asked only where the
            network does not state its own.
    """

    samples: int
    metric: float
    chance: float | None
    others: Mapping[str, float] = field(default_factory=dict)

    def warnings(self) -> tuple[str, ...]:
        """Returns what speaks against going on; nothing where the network is as good as it should be."""
        found = []
        if self.chance is not None:
            spread = np.sqrt(self.chance * (1 - self.chance) / max(1, self.samples))
            if self.metric <= self.chance + 2 * spread:
                found.append(
                    f"warning: the network itself is right on {self.metric:.1%} of {self.samples} samples, and the "
                    f"most frequent class alone would be right on {self.chance:.1%}: that is chance. Look "
                    "at the labels, at the order of the classes (classes.txt), and at how the images are prepared"
                )
        if self.others:
            name, metric = max(self.others.items(), key=lambda item: item[1])
            if metric > self.metric + _CLEARLY:
                found.append(
                    f"warning: the network's metric is {self.metric:.3f} on {self.samples} samples as they are "
                    f"prepared now, and {metric:.3f} with {name}. The model does not state how it wants its images: "
                    "export it again with the preprocessing that it was trained with"
                )
        return tuple(found)


def check_network(model: Model, runner: SegmentRunner, samples: Samples, task: Task, *, rows: int) -> NetworkCheck:
    """Asks the full network about some samples of the calibrate part, evenly spaced.

    Args:
        model: the network.
        runner: its engines, opened for ``rows`` rows.
        samples: with labels.
        task: judges the answers.
        rows: batch size of the runs.
    """
    available = samples.indices_of("calibrate")
    asked = available[:: max(1, len(available) // ASKED_SAMPLES)]
    others = dict(_other_ways(samples)) if model.spec.stated_preprocessing() is None else {}
    own, sums = MetricSum(task), {name: MetricSum(task) for name in others}
    classes: list[np.ndarray] = []
    for chunk in in_chunks(asked, rows):
        targets = samples.targets(chunk)
        *_, (answers, _) = runner.answers(runner.run(samples.inputs(chunk)))
        own.add(answers, targets)
        if task.predictions(answers) is not None:
            classes.append(targets)
        if isinstance(samples, ImageSamples) and others:
            pixels = samples.pixels(chunk)
            name = model.spec.full.inputs[0].name
            for way, preprocessing in others.items():
                *_, (answers, _) = runner.answers(runner.run({name: _prepare(pixels, preprocessing)}))
                sums[way].add(answers, targets)
    chance = None
    if classes:
        _, counts = np.unique(np.concatenate(classes), return_counts=True)
        chance = float(counts.max() / counts.sum())
    return NetworkCheck(
        samples=len(asked), metric=own.value, chance=chance, others={way: total.value for way, total in sums.items()}
    )


def _other_ways(samples: Samples) -> Iterator[tuple[str, Preprocessing]]:
    """Yields the usual ways to prepare pixels for a network, with their descriptions."""
    if not isinstance(samples, ImageSamples):
        return
    now = samples.preprocessing
    ways = {
        "pixels from 0 to 255": replace(now, scale=1.0, mean=(0.0,), std=(1.0,)),
        "pixels from 0 to 1": replace(now, scale=1 / 255, mean=(0.0,), std=(1.0,)),
        "pixels from -1 to 1": replace(now, scale=1 / 255, mean=(0.5,), std=(0.5,)),
    }
    if now.channels == 3:
        ways["ImageNet's mean and spread"] = replace(
            now, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        ways["pixels from 0 to 255 in the order BGR"] = replace(
            now, scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0,), channel_order="BGR"
        )
    for name, way in ways.items():
        if way != now:
            yield name, way


def _prepare(pixels: np.ndarray, way: Preprocessing) -> np.ndarray:
    if way.channel_order == "BGR":
        pixels = pixels[..., ::-1] if way.layout == "NHWC" else pixels[:, ::-1]
    return np.ascontiguousarray(way.normalise(pixels))
