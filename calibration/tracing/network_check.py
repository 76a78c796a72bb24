"""NetworkCheck: the full network asked first, whether it is any good on the samples as they are prepared.

At chance, or clearly better on the same pixels prepared in another way or with the classes in another order
(``class_order``), the labels, the order of the classes or the preprocessing are not what the network was trained with.
Exits and thresholds would be worth nothing then, so nothing goes on unless the user says so.

*Chance* is a permutation test: are the answers right more often than the same answers handed out to the samples at
random would be? A network whose classes are rare passes it, one that always gives the same answer does not.

*Clearly better* is a paired test: of the samples on which two ways differ in quality, how many favour the other way? By
the sign test the probability of that under equal ways is known exactly; it is multiplied by the number of ways that
were asked about.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from artifacts import (
    COMMAND,
    CONVENTIONS,
    SAID_BY,
    InputError,
    Model,
    Preprocessing,
    RunFolder,
    Task,
    TensorSpec,
    recorded_command,
)
from calibration.certify.binomials import binomial_cdf
from calibration.data.samples import ImageSamples, Samples, in_chunks
from calibration.options import CalibrationOptions
from calibration.tracing.all_exits import SegmentRunner
from calibration.tracing.class_order import find_other_order
from calibration.tracing.metrics import MetricSum
from calibration.tracing.row_check import check_rows

ASKED_SAMPLES = 256
_GLANCED = 64  # samples on which every other way is looked at; the best are asked about all
_FOLLOWED = 3
_SURE = 0.01
_FEWEST = 30  # samples; fewer cannot tell chance from a network
_SHUFFLES = 999
_CHANNELS = 3
_FROM_THE_NETWORK = ("height", "width", "channel_count", "layout", "in_graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWay:
    """The network under another way to prepare the same pixels.

    Attributes:
        words: the way, for people.
        flag: what ``--preprocess`` takes for it.
        metric: of its answers, on the samples that were asked.
        p_value: the probability of such an advantage if it were no better, over all ways that were looked at.
    """

    words: str
    flag: str
    metric: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCheck:
    """How the full network does on a few samples.

    Attributes:
        samples: how many were asked.
        metric: of its answers, as the samples are prepared.
        majority: metric of the most frequent class as the only answer; ``None`` where answers are not classes.
        shuffled: the probability that the same answers, handed out at random, are right as often; ``None`` where that
            cannot be told: no classes, only one, or very few samples.
        others: other ways to prepare the same pixels, the best ones, asked only where the network is often wrong.
        order: another order of the classes in which the network is clearly right more often, in words.
    """

    samples: int
    metric: float
    majority: float | None = None
    shuffled: float | None = None
    others: tuple[OtherWay, ...] = field(default=())
    order: str | None = None

    @property
    def better(self) -> OtherWay | None:
        """The best of the ways that are clearly better; ``None`` where none is."""
        clear = [way for way in self.others if way.p_value < _SURE and way.metric > self.metric]
        return max(clear, key=lambda way: way.metric, default=None)

    def problems(self) -> tuple[str, ...]:
        """Returns what speaks against going on; nothing where the network is as good as it should be."""
        found = []
        if self.shuffled is not None and self.majority is not None:
            spread = np.sqrt(self.majority * (1 - self.majority) / self.samples)
            right = f"the network itself is right on {self.metric:.1%} of {self.samples} samples"
            if self.shuffled > _SURE:
                found.append(f"{right}, and the same answers handed out at random would do as well: that is chance")
            elif self.metric < self.majority - 2 * spread:
                found.append(f"{right}, and the most frequent class alone would be right on {self.majority:.1%}")
        if (way := self.better) is not None:
            found.append(
                f"the network's metric is {self.metric:.3f} on {self.samples} samples as they are prepared now, and "
                f"{way.metric:.3f} with {way.words} (p = {way.p_value:.1g})"
            )
        elif self.order is not None:
            found.append(self.order)
        return tuple(found)


def ask_network(
    model: Model, runner: SegmentRunner, samples: Samples, task: Task, *, rows: int, options: CalibrationOptions
) -> None:
    """Asks the full network before anything is made of it, and stops where it is no good.

    Args:
        model: the network.
        runner: its engines, opened for ``rows`` rows.
        samples: the data; without labels nothing can be asked, and what is assumed is said.
        task: judges the answers.
        rows: batch size of the runs.
        options: receives the lines for the user; with ``force`` a network that is no good is a warning.

    Raises:
        InputError: it is at chance, or clearly better under another preprocessing or in another order of the classes.
        GraphError: the answer to a sample depends on its neighbours in the batch.
    """
    check_rows(model, runner, samples, _draw(samples), rows=rows)
    prepared = _describe_preparation(model, samples)
    if not samples.labelled:
        options.report(f"no labels, so whether the network is any good is not known{prepared and f'; {prepared}'}")
        return
    if not len(samples.indices_of("calibrate")) and not len(samples.indices_of("train")):
        return
    found = check_network(model, runner, samples, task, rows=rows)
    options.report(
        f"the full network: {task.metric_name} {found.metric:.4f} on {found.samples} samples"
        f"{prepared and f'; {prepared}'}"
    )
    if not (problems := found.problems()):
        return
    message = f"{'; '.join(problems)}. {_advise(model, samples, found, options)}"
    if not options.force:
        again = options.notes(RunFolder(root=model.artifact.folder.parent))[COMMAND]
        raise InputError(f"{message} To go on all the same: {again} --force")
    options.report(f"warning: {message}")


def _describe_preparation(model: Model, samples: Samples) -> str:
    if not isinstance(samples, ImageSamples):
        return ""
    assumed = "are assumed to be prepared by the data's own mean and spread (say it with --preprocess when exporting)"
    who = f"are prepared as {model.spec.settings.get(SAID_BY) or 'the model states'}"
    words = who if model.spec.stated_preprocessing() is not None else assumed
    return f"images {words}: {samples.preprocessing.describe()}"


def _advise(model: Model, samples: Samples, found: NetworkCheck, options: CalibrationOptions) -> str:
    """Returns the sentence that says what to do."""
    if found.better is not None:
        whole = options.command if (options.command or "").startswith("python -m planner ") else None
        command = shlex.split(
            whole or recorded_command(model.artifact.folder) or "python -m export path/to/model.onnx"
        )  # fmt: skip
        if "--preprocess" in command:
            at = command.index("--preprocess")
            del command[at : at + 2]
        return (
            f"{'Say so' if whole else 'Export it again'}: {shlex.join([*command, '--preprocess', found.better.flag])}."
        )
    if found.order is not None:
        return "Name all classes in classes.txt, one a line, in the order of the network's answers."
    prepared = " and at how images are prepared (--preprocess when exporting)" * isinstance(samples, ImageSamples)
    return f"Look at the labels, at the order of the classes (classes.txt){prepared}."


def check_network(model: Model, runner: SegmentRunner, samples: Samples, task: Task, *, rows: int) -> NetworkCheck:
    """Asks the full network about some samples: of the train part, or of the calibrate part where there is none.

    Other ways to prepare pixels are asked about where the network is wrong so often that one could be clearly better.

    Args:
        model: the network.
        runner: its engines, opened for ``rows`` rows.
        samples: with labels.
        task: judges the answers.
        rows: batch size of the runs.
    """
    asked = _draw(samples)
    asking = _Asking(input=model.spec.full.inputs[0], runner=runner, samples=samples, task=task, rows=rows)
    own = asking.ask(asked, None)
    check = NetworkCheck(samples=len(asked), metric=own.metric)
    labels = samples.targets(asked)
    if own.predictions is not None:
        majority = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
        shuffled = compare_with_shuffled(own.predictions, labels)
        order = find_other_order(own.predictions, labels)
        words = None if order is None else order.describe(getattr(samples, "classes", ()))
        check = replace(check, majority=majority, shuffled=shuffled, order=words)
    if not isinstance(samples, ImageSamples):
        return check
    takes_bytes = np.dtype(asking.input.dtype).kind in "iu"
    ways = dict(other_ways(samples.preprocessing, bytes_alone=takes_bytes))
    imperfect = int((own.quality < 1).sum())
    if not ways or 0.5**imperfect * len(ways) >= _SURE:  # not even if every mistake were put right
        return check
    glanced = {words: asking.ask(asked[:_GLANCED], way) for words, way in ways.items()}
    best = sorted(ways, key=lambda words: -float(glanced[words].quality.mean()))[:_FOLLOWED]
    others = []
    for words in best:
        if glanced[words].quality.mean() <= own.quality[:_GLANCED].mean():
            continue
        answers = asking.ask(asked, ways[words])
        if answers.predictions is not None and (compare_with_shuffled(answers.predictions, labels) or 0) > _SURE:
            continue  # right more often by answering the frequent class more often
        p_value = min(1.0, len(ways) * sign_test(answers.quality, own.quality))
        flag = name_flag(ways[words], stated=_states_resize(model))
        others.append(OtherWay(words=words, flag=flag, metric=answers.metric, p_value=p_value))
    return replace(check, others=tuple(others))


def _states_resize(model: Model) -> bool:
    """Tells whether somebody said how images are resized, rather than took over what goes with a convention."""
    by_name = {f"--preprocess {convention.name}" for convention in CONVENTIONS}
    return model.spec.stated_preprocessing() is not None and model.spec.settings.get(SAID_BY) not in by_name


def _draw(samples: Samples) -> np.ndarray:
    """Draws the samples that are asked about, in an order of its own, always the same."""
    part = "train" if len(samples.indices_of("train")) >= _FEWEST else "calibrate"
    available = samples.indices_of(part)
    drawn: np.ndarray = np.random.default_rng(0).permutation(available)[:ASKED_SAMPLES]
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Answered:
    quality: np.ndarray
    metric: float
    predictions: np.ndarray | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asking:
    input: TensorSpec
    runner: SegmentRunner
    samples: Samples
    task: Task
    rows: int

    def ask(self, indices: np.ndarray, way: Preprocessing | None) -> _Answered:
        """Runs samples through the network, prepared as they are or in another way."""
        total, quality, predictions = MetricSum(self.task), [], []
        for chunk in in_chunks(indices, self.rows):
            *_, (answers, _) = self.runner.answers(self.runner.run(self._inputs(chunk, way)))
            targets = self.samples.targets(chunk)
            total.add(answers, targets)
            quality.append(self.task.quality(answers, targets))
            if (classes := self.task.predictions(answers)) is not None:
                predictions.append(classes)
        return _Answered(
            quality=np.concatenate(quality),
            metric=total.value,
            predictions=np.concatenate(predictions) if predictions else None,
        )

    def _inputs(self, chunk: np.ndarray, way: Preprocessing | None) -> Mapping[str, np.ndarray]:
        if way is None or not isinstance(self.samples, ImageSamples):
            return self.samples.inputs(chunk)
        pixels, now = self.samples.pixels(chunk), self.samples.preprocessing
        if way.channel_order != now.channel_order:
            pixels = pixels[..., ::-1] if way.layout == "NHWC" else pixels[:, ::-1]
        return {self.input.name: np.ascontiguousarray(way.prepare(pixels, self.input.dtype))}


def other_ways(now: Preprocessing, *, bytes_alone: bool = False) -> Iterator[tuple[str, Preprocessing]]:
    """Yields the usual ways to prepare pixels for a network, with their descriptions; images are resized as now.

    With ``bytes_alone``, for a network that takes bytes, only the order of the channels can be another.
    """
    bases = {"the numbers as now": now}
    if not bytes_alone:
        for convention in CONVENTIONS:
            if now.channels == _CHANNELS or not convention.coloured:
                bases[f"'{convention.name}' ({convention.meaning})"] = convention.renumber(now)
    for words, way in bases.items():
        if way != now:
            yield words, way
        if now.channel_order in ("RGB", "BGR"):
            turned = _turn(way)
            if turned != now:
                yield f"{words}, but the channels in the order {turned.channel_order}", turned


def _turn(way: Preprocessing) -> Preprocessing:
    order = "RGB" if way.channel_order == "BGR" else "BGR"
    return replace(way, channel_order=order, mean=way.mean[::-1], std=way.std[::-1])


def name_flag(way: Preprocessing, *, stated: bool) -> str:
    """Returns what ``--preprocess`` takes for a way: a convention's name, or JSON.

    Args:
        way: the preprocessing.
        stated: the model states how images are resized; otherwise a convention's own resize is as good.
    """
    for convention in CONVENTIONS:
        if convention.coloured and way.channels != _CHANNELS:
            continue
        if convention.fit(way) == way or (not stated and convention.renumber(way) == way):
            return convention.name
    plain = Preprocessing(height=way.height, width=way.width)
    told = {item.name: getattr(way, item.name) for item in fields(way) if item.name not in _FROM_THE_NETWORK}
    return json.dumps({name: value for name, value in told.items() if value != getattr(plain, name)})


def compare_with_shuffled(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Returns the probability that the same answers, handed out at random, are right as often; ``None``: no telling."""
    if len(labels) < _FEWEST or len(np.unique(labels)) < 2:
        return None
    shuffles = np.random.default_rng(0).permuted(np.tile(labels, (_SHUFFLES, 1)), axis=1)
    as_good = (shuffles == predictions).sum(axis=1) >= (labels == predictions).sum()
    return float((1 + as_good.sum()) / (1 + _SHUFFLES))


def sign_test(mine: np.ndarray, other: np.ndarray) -> float:
    """Returns the probability of at least as many samples in favour of ``mine`` if neither were better.

    Args:
        mine, other: (n,) quality of the same samples; those of equal quality do not count.
    """
    better, worse = int((mine > other).sum()), int((mine < other).sum())
    return binomial_cdf(worse, better + worse, 0.5)  # a coin has no side: P(at least so many) = P(at most the others)
