"""From a model without exits to a trace: train what is missing, then send the calibrate part through everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts import (
    Artifact,
    GraphError,
    Model,
    Preprocessing,
    RunFolder,
    Trace,
    UsageError,
    digest_of,
    is_current,
    new_artifact,
    open_artifact,
    save_arrays,
    to_plain,
    write_json,
)
from artifacts.console import say
from calibration.certify.risk_tests import check_labels
from calibration.data.datasets import SPLITS, Dataset
from calibration.data.sources import load_run_data, normalisation_of, source_name
from calibration.tracing.all_exits import ModelChain
from calibration.tracing.collecting import collect_trace
from calibration.training.checkpoints import History
from calibration.training.end_to_end import JointConfig, measure_accuracy, train_joint
from calibration.training.frozen import FrozenConfig, train_frozen
from export import (
    MultiExitNet,
    Recipe,
    add_heads,
    build_missing_heads,
    ensure_model,
    make_recipe,
    publish_net,
    rebuild_net,
    save_weights,
    write_recipe,
)

TRACE_ROWS = 64
TRACE_NPZ = "trace.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which engines run segments and heads: backend and threads of each engine."""

    backend: str
    threads: int


def ensure_trace(
    run: RunFolder, *, backend: str, threads: int, data: Path | None = None, risk: str | None = None
) -> tuple[Artifact, Trace]:
    """Returns the run's trace of the calibrate part, making what is missing upstream and saying so.

    Args:
        run: the run's folder; without a model the ResNet family is exported.
        backend: engine backend, e.g. ``onnxruntime``.
        threads: of each engine.
        data: ``--data``; ``None``: what the run used before, or Fashion-MNIST.
        risk: what the trace is wanted for; one that the data cannot tell is refused before any work. ``None``: any.

    Raises:
        UsageError: the risk needs labels, or exit heads are to be trained, and the data has none.
    """
    ensure_model(run, report=say)
    dataset = load_run_data(run, data)
    if risk is not None:
        check_labels(risk, labelled=dataset.labelled, where=dataset.name)
    engine = EngineChoice(backend=backend, threads=threads)
    model = train_missing(run, dataset, FrozenConfig(), engine)
    return trace_model(run, model, dataset, engine, source=source_name(dataset, data, run))


def trace_model(
    run: RunFolder, model: Model, data: Dataset, engine: EngineChoice, *, source: str
) -> tuple[Artifact, Trace]:
    """Collects the trace of the calibrate part, or reuses it if model, data and backend are unchanged."""
    inputs = {"model": model.digest, **data.digests()}
    parameters: dict[str, Any] = {"backend": engine.backend, "data_source": source, "part": "calibrate"}
    if not data.labelled:
        parameters["labelled"] = False
    if not is_current(run.trace, kind="trace", inputs=inputs, parameters=parameters):
        say(f"collecting the trace of {len(data.split('calibrate'))} samples of {data.name} into {run.trace}")
        if not data.labelled and normalisation_of(model) is None:
            say(
                f"note: {run.model} does not say how pixels were normalised in training; those of {data.name} are by "
                f"its own mean {data.mean:g} and spread {data.std:g}"
            )
        with ModelChain(
            model, run.engines, backend=engine.backend, threads=engine.threads, rows=TRACE_ROWS, with_heads=True
        ) as chain:
            trace = collect_trace(model, chain, data, "calibrate", rows=TRACE_ROWS)
        notes = {} if data.split_seed is None else {"split_seed": str(data.split_seed)}
        with new_artifact(run.trace, kind="trace", inputs=inputs, parameters=parameters, notes=notes) as staging:
            trace.save(staging / TRACE_NPZ)
            save_arrays(staging / "indices.npz", {part: data.split(part) for part in SPLITS})
    artifact = open_artifact(run.trace, kind="trace", remedy="python -m calibration")
    return artifact, Trace.load(artifact.path(TRACE_NPZ))


def train_missing(run: RunFolder, data: Dataset, config: FrozenConfig, engine: EngineChoice) -> Model:
    """Trains exit heads on the frozen backbone wherever a candidate has none.

    Raises:
        UsageError: some have none, and the data has no labels.
        GraphError: the model has no segments.
    """
    model = ensure_model(run, report=say)
    heads = build_missing_heads(model)
    if not heads:
        return model
    if not model.spec.cuts:
        raise GraphError(f"{run.model} was exported without segments. Export it again with --segments")
    _check_trainable(run, data, f"the exit heads at {', '.join(heads)}")
    say(f"training {len(heads)} exit heads on the frozen backbone: {', '.join(heads)}")
    torch.set_num_threads(engine.threads)
    inputs = {"model": model.digest, **data.digests()}
    with ModelChain(
        model, run.engines, backend=engine.backend, threads=engine.threads, rows=config.batch_size, with_heads=False
    ) as chain:
        name = model.spec.full.inputs[0].name
        history = train_frozen(heads, chain, name, data, config, run.training / "checkpoint", inputs=inputs)
    parameters = {"mode": "frozen", **to_plain(config)}
    trained = add_heads(
        model,
        heads,
        inputs={**inputs, "training": digest_of(parameters)},
        preprocessing=_preprocessing(data),
        report=say,
    )
    with new_artifact(run.training / "result", kind="training", inputs=inputs, parameters=parameters) as staging:
        write_json(staging / "history.json", history)
    return trained


def retrain_jointly(run: RunFolder, data: Dataset, config: JointConfig, engine: EngineChoice) -> Model:
    """Trains backbone and exits of a torch family together, starting from the weights in the model folder.

    The result is published twice: as the run's model, and with its recipe as ``training/weights``, whose safetensors
    file ``python -m export --weights`` takes. A training that the model folder already holds is not repeated.

    Raises:
        UsageError: the data has no labels.
    """
    _check_trainable(run, data, "the network and its exits")
    model = ensure_model(run, report=say)
    parameters = {"mode": "joint", **to_plain(config), **data.digests()}
    training = digest_of(parameters)
    if model.artifact.manifest.inputs.get("training") == training:
        say(f"{run.model} already holds this training")
        return model
    torch.set_num_threads(engine.threads)
    net = rebuild_net(model)
    say(f"training backbone and {len(net.cut_names)} exits of {model.spec.name} together for {config.epochs} epochs")
    inputs = {"model": model.digest, **data.digests()}
    history = train_joint(net, data, config, run.training / "checkpoint", inputs=inputs)
    accuracy = measure_accuracy(net, data, "test")
    say("accuracy on the test part: " + ", ".join(f"{name} {value:.4f}" for name, value in accuracy.items()))
    recipe = _recipe(model, data, config, history, accuracy)
    with new_artifact(run.training / "weights", kind="weights", inputs=inputs, parameters=parameters) as staging:
        _write_weights(staging, net, recipe)
    return publish_net(model, net, inputs={**inputs, "training": training}, preprocessing=_preprocessing(data))


def _check_trainable(run: RunFolder, data: Dataset, what: str) -> None:
    """Refuses to train with a log of queries."""
    if not data.labelled:
        raise UsageError(
            f"{data.name} has no labels, and {what} in {run.model} are to be trained. Train with labelled data first: "
            f"python -m calibration --run {run.root} --data LABELLED; queries without labels calibrate what is trained"
        )


def _preprocessing(data: Dataset) -> Preprocessing:
    """Returns what a model records of how images were prepared in training."""
    channels, height, width = data.images.shape[1:]
    return Preprocessing(
        height=height, width=width, channel_order="L" if channels == 1 else "RGB", mean=(data.mean,), std=(data.std,)
    )


def _write_weights(staging: Path, net: MultiExitNet, recipe: Recipe) -> None:
    save_weights(staging / "weights.safetensors", net)
    write_recipe(staging, recipe)


def _recipe(
    model: Model, data: Dataset, config: JointConfig, history: History, accuracy: Mapping[str, float]
) -> Recipe:
    record = {"training": to_plain(config), "history": history, "test_metric": accuracy}
    return make_recipe(model, preprocessing=_preprocessing(data), dataset=data.name, record=record)
