"""Preparation: what a GPU machine should not have to make, made ahead on any machine with ``make test``'s packages.

    python -m benchmarks.gpu.prepare DIR [--run runs/resnet]

The demo network in both precisions as subjects, without anything of torch, and TensorRT-RTX engines of their graphs.
With ``--run`` the float32 one is the bundle that the planner made there, with its thresholds and held-out images, and
the run's model and trace are taken along for a plan on the GPU; otherwise its exits are where half of some noise
leaves. ResNet-50 and BERT are larger than what a GPU machine needs to make them, and stay out.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from artifacts import BUNDLE_JSON, BundleSpec, GraphSpec, PameError, RunFolder, open_artifact, open_model, read_json
from artifacts.console import say
from benchmarks.gpu.nets.making import make_subject
from benchmarks.gpu.nets.subjects import Batch, Subject, SubjectSpec, open_subject, write_subject
from benchmarks.gpu.stage_plan import RUN
from benchmarks.gpu.stage_rtx import BUILT, RTX, build_once
from calibration import load_run_data

SAMPLES = 1_000
NAMES = ("demo", "demo-fp16")


def prepare(folder: Path, *, run: Path | None, names: Sequence[str] = NAMES) -> None:
    """Fills ``folder``; what cannot be made is said and left out, but for the subjects themselves."""
    for name in names:
        if run is not None and name == "demo":
            data = load_run_data(RunFolder(root=run))
            samples = data.inputs(data.indices_of("test")[:SAMPLES])
            subject = take_bundle(RunFolder(root=run), folder / name, samples)
            for taken in (RunFolder(root=run).model, RunFolder(root=run).trace):
                shutil.copytree(taken, folder / RUN / taken.name, dirs_exist_ok=True)
        else:
            with tempfile.TemporaryDirectory(prefix="pame-") as scratch:
                subject = copy_subject(make_subject(name, Path(scratch)), folder / name)
        say(f"{name}: {subject.rows} samples, {len(subject.spec.stages)} stages")
        for graph in (subject.spec.full, *subject.spec.stages):
            try:
                build_once(subject.folder / graph.file, RTX, keep=folder / BUILT / f"{name}-{graph.name}")
            except PameError as error:
                say(f"no TensorRT-RTX engine of {name} {graph.name}: {error}")


def copy_subject(subject: Subject, target: Path) -> Subject:
    """Copies what a subject's specification names, flat, and nothing else."""
    return _write(target, subject.spec, {graph.name: subject.folder / graph.file for graph in _graphs(subject.spec)},
                  dict(subject.samples))  # fmt: skip


def take_bundle(run: RunFolder, target: Path, samples: Batch) -> Subject:
    """Makes a subject of a run's bundle and its whole network.

    Args:
        run: as the planner left it.
        target: the subject's folder.
        samples: inputs of the network by name, (N, ...) each.

    Raises:
        ArtifactError: the run has no sound bundle or model.
    """
    remedy = "make demo"
    artifact = open_artifact(run.bundle, kind="bundle", remedy=remedy)
    bundle, model = read_json(artifact.path(BUNDLE_JSON), BundleSpec), open_model(run.model, remedy=remedy)
    heads = tuple(model.spec.heads[planned.cut] for planned in bundle.plan.exits)
    spec = SubjectSpec(
        name="demo", full=model.spec.full, stages=tuple(stage.graph for stage in bundle.stages), heads=heads,
        thresholds=tuple(float(stage.threshold) for stage in bundle.stages if stage.threshold is not None),
    )  # fmt: skip
    files = {graph.name: model.path(graph) for graph in (model.spec.full, *heads)}
    files |= {stage.graph.name: artifact.path(stage.graph.file) for stage in bundle.stages}
    return _write(target, spec, files, samples)


def _graphs(spec: SubjectSpec) -> tuple[GraphSpec, ...]:
    return (spec.full, *spec.stages, *spec.heads)


def _write(target: Path, spec: SubjectSpec, files: Mapping[str, Path], samples: Batch) -> Subject:
    target.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        shutil.copyfile(source, target / f"{name}.onnx")
        weights = source.with_name(f"{source.name}.data")
        if weights.is_file():  # named inside the graph, so it keeps its name
            shutil.copyfile(weights, target / weights.name)

    def place(graph: GraphSpec) -> GraphSpec:
        return replace(graph, file=f"{graph.name}.onnx")

    flat = replace(
        spec, full=place(spec.full), stages=tuple(map(place, spec.stages)), heads=tuple(map(place, spec.heads))
    )
    write_subject(target, flat, samples)
    return open_subject(target)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="to be filled")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run whose bundle is the demo, e.g. runs/resnet")
    parser.add_argument("--network", action="append", help="may be repeated (default: demo and demo-fp16)")
    given = parser.parse_args(argv)
    try:
        prepare(given.folder, run=given.run, names=given.network or NAMES)
    except PameError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
