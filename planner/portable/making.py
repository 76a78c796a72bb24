"""Making a portable file: both forms are written, proven against the runtime row by row, and timed; the faster is kept.

The rows are those of the data's test part, in batches of the plan's size; the contenders take turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from artifacts import (
    BUNDLE_JSON,
    Artifact,
    BundleSpec,
    GraphSpec,
    RunFolder,
    UsageError,
    open_artifact,
    open_scratch,
    package_version,
    read_json,
    to_plain,
)
from artifacts.console import track
from calibration import BatchReader, Samples, as_batch
from engines import GraphRunner
from planner.commit.one_graph import FLAT, GUARDED, Likeness, why_not_flat, write_form
from runtime import Runtime, RuntimeOptions, open_bundle

RUNTIME = "runtime"
"""What both forms are compared with."""
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableFile:
    """A portable file that was proven.

    Attributes:
        path: the file.
        graph: its interface.
        form: ``If`` or ``no rows``.
        rows: on how many it was compared with the runtime.
        flips: how many of them left elsewhere, all with a confidence at a threshold.
        difference: the largest of an answer, relative to the largest answer.
        batch_ms: contender -> median time of a batch.
        reason: why there is only one form to choose from; ``None``: both were timed.
    """

    path: Path
    graph: GraphSpec
    form: str
    rows: int
    flips: int
    difference: float
    batch_ms: Mapping[str, float]
    reason: str | None = None


def make_portable(
    run: RunFolder, output: Path, samples: Samples, *, count: int, report: Callable[[str], None]
) -> PortableFile:
    """Writes the plan of a run's bundle as one ONNX file.

    Args:
        run: it has a bundle, whose engines run here.
        output: the file.
        samples: their test part is what the file is proven on.
        count: at most so many of them.
        report: takes lines about the progress.

    Raises:
        UsageError: there is no test part, or ``output`` is no place for a file.
        GraphError: the file does not answer as the runtime does.
        PameError: the bundle cannot be loaded here.
    """
    if output.suffix != ".onnx" or output.is_dir():
        raise UsageError(f"--output {output}: expected the name of an .onnx file")
    rows = samples.indices_of("test")
    if len(rows) == 0:
        raise UsageError(f"{samples.name} has no test part to prove the file on; name data that has one with --data")
    artifact = open_artifact(run.bundle, kind="bundle", remedy=run.remedy("planner"))
    spec = read_json(artifact.path(BUNDLE_JSON), BundleSpec)
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    chunks = [rows[start : start + spec.plan.batch_size] for start in range(0, len(rows), spec.plan.batch_size)]
    batches = BatchReader(samples, chunks)
    _check_arithmetic(spec, run)
    with open_scratch(output) as folder:
        metadata = _describe(artifact, spec)
        made = {
            form: write_form(artifact, spec, form, folder / form / output.name, metadata=metadata)
            for form in (GUARDED, FLAT)
        }
        with ExitStack() as stack:
            opened = open_bundle(run.bundle, stages_only=True)  # which the file is made of, and proven against
            runtime = Runtime(spec, opened.engine_sets, opened.device, RuntimeOptions(drift=None))
            stack.enter_context(runtime)
            runners = {}
            for form in made:
                path = folder / form / output.name
                runners[form] = stack.enter_context(GraphRunner(path, threads=spec.plan.threads))
            reason = why_not_flat(artifact, spec, folder, batches[0])
            if reason is not None:
                report(f"every stage is guarded by If: {reason}")
                runners.pop(FLAT).close()
            contest = _Contest(spec, runtime, runners)
            for lap in range(_ROUNDS):
                for place in track(range(len(chunks)), description="proving", total=len(chunks)):
                    contest.run(batches[place], first_lap=lap == 0)
        form = min(runners, key=lambda name: contest.batch_ms[name])
        weights = [file for file in (folder / form).iterdir() if file.name != output.name]
        if weights:
            output.unlink(missing_ok=True)  # so that no graph is ever beside the weights of another
        for file in weights:
            file.replace(output.with_name(file.name))
        (folder / form / output.name).replace(output)
    return PortableFile(
        path=output, graph=made[form], form=form, rows=len(rows), flips=contest.likeness[form].flips,
        difference=contest.likeness[form].difference, batch_ms=contest.batch_ms, reason=reason,
    )  # fmt: skip


def _check_arithmetic(spec: BundleSpec, run: RunFolder) -> None:
    """Refuses a plan for engines that compute otherwise than the graph says: nothing in a file asks for that."""
    if spec.backend.endswith("-bf16"):
        raise UsageError(
            f"{run.bundle} was planned and certified on {spec.backend}, whose arithmetic a file cannot ask of its "
            f"host. Plan for the network's own: python -m planner --run {run.root} --tolerance {spec.plan.tolerance:g} "
            "--engine onnxruntime"
        )


def _describe(artifact: Artifact, spec: BundleSpec) -> dict[str, str]:
    """Returns what a file says of itself: the plan with its certificate, and how the network wants its inputs."""
    stated = {} if spec.preprocessing is None else {"pame.preprocessing": _json(spec.preprocessing)}
    return {
        "pame.version": package_version("pame") or "",
        "pame.bundle_digest": artifact.digest,
        "pame.exit_plan": _json(spec.plan),
        "pame.task": spec.task,
        **stated,
    }


def _json(value: object) -> str:
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))


class _Contest:
    """Runs batches through the runtime and the forms of the file in turns, and compares what they answer.

    Attributes:
        likeness: form -> how far its answers are from the runtime's, in the first lap.
    """

    def __init__(self, spec: BundleSpec, runtime: Runtime, runners: Mapping[str, GraphRunner]) -> None:
        self._runtime, self._runners = runtime, runners
        self._seconds: dict[str, list[float]] = {name: [] for name in (RUNTIME, *runners)}
        self._turn = 0
        self.likeness = {form: Likeness(spec, f"the portable file ({form})") for form in runners}

    @property
    def batch_ms(self) -> dict[str, float]:
        """Contender -> median time of a batch of the plan's size."""
        return {name: float(np.median(seconds)) * 1e3 for name, seconds in self._seconds.items()}

    def run(self, batch: Mapping[str, np.ndarray], *, first_lap: bool) -> None:
        """Runs a batch through every contender; each comes first in turn. In the first lap answers are compared.

        Raises:
            GraphError: a row is answered otherwise.
        """
        names = list(self._seconds)
        names = names[self._turn % len(names) :] + names[: self._turn % len(names)]
        self._turn += 1
        found: dict[str, dict[str, np.ndarray]] = {}
        for name in names:
            started = perf_counter()
            if name == RUNTIME:
                result = self._runtime.run(as_batch(batch))
            else:
                found[name] = self._runners[name].run(batch)
            self._seconds[name].append(perf_counter() - started)
        for name, outputs in found.items() if first_lap else ():
            *answers, exit_index, confidence = outputs.values()
            self.likeness[name].compare(answers, exit_index, confidence, result)
