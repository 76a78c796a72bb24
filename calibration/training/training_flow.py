"""Training workflow: exit heads where they are missing, or a whole network with its exits; needs torch."""

from __future__ import annotations

import torch

from artifacts import (
    GraphError,
    Model,
    Preprocessing,
    RunFolder,
    UsageError,
    digest_of,
    new_artifact,
    to_plain,
    work_alone,
    write_json,
)
from calibration.data.samples import ImageSamples, Samples
from calibration.options import DEFAULT_OPTIONS, CalibrationOptions
from calibration.tracing.all_exits import EngineChoice, SegmentRunner
from calibration.tracing.network_check import ask_network
from calibration.training.checkpoints import Checkpoint
from calibration.training.config import FrozenConfig, JointConfig
from calibration.training.end_to_end import measure_exits, train_joint
from calibration.training.frozen import train_frozen
from export import (
    add_heads,
    build_missing_heads,
    ensure_model,
    make_recipe,
    publish_net,
    rebuild_net,
    save_weights,
    write_recipe,
)


@work_alone
def train_missing(
    run: RunFolder, samples: Samples, config: FrozenConfig, engine: EngineChoice,
    *, options: CalibrationOptions = DEFAULT_OPTIONS,
) -> Model:  # fmt: skip
    """Trains exit heads on the frozen backbone wherever a candidate has none.

    Raises:
        UsageError: some have none, and the data has no labels.
        GraphError: the model has no segments.
    """
    model = ensure_model(run, report=options.report)
    heads = build_missing_heads(model)
    if not heads:
        return model
    if not model.spec.cuts:
        raise GraphError(f"{run.model} was exported without segments. Export it again with --segments")
    _check_trainable(run, samples, f"the exit heads at {', '.join(heads)}")
    task = options.task_of(model)
    options.report(f"training {len(heads)} exit heads on the frozen backbone: {', '.join(heads)}")
    torch.set_num_threads(engine.threads)
    inputs = {"model": model.digest, **samples.digests()}
    checkpoint = Checkpoint(
        folder=run.training / "checkpoint", inputs=inputs, parameters=to_plain(config), notes=options.notes(run),
        report=options.report,
    )  # fmt: skip
    with SegmentRunner(model, run.engines, engine, rows=config.batch_size, with_heads=False) as runner:
        ask_network(model, runner, samples, task, rows=config.batch_size, options=options)
        history = train_frozen(heads, runner, samples, task, config, checkpoint)
    parameters = {"mode": "frozen", **to_plain(config)}
    trained = add_heads(
        model, heads, inputs={**inputs, "training": digest_of(parameters)}, preprocessing=_preprocessing(samples),
        report=options.report,
    )  # fmt: skip
    with new_artifact(
        run.training / "result", kind="training", inputs=inputs, parameters=parameters, notes=options.notes(run)
    ) as staging:
        write_json(staging / "history.json", history)
    return trained


@work_alone
def retrain_jointly(
    run: RunFolder, samples: Samples, config: JointConfig, engine: EngineChoice,
    *, options: CalibrationOptions = DEFAULT_OPTIONS,
) -> Model:  # fmt: skip
    """Trains backbone and exits of a torch family together, starting from the weights in the model folder.

    The result is published twice: as the run's model, and with its recipe as ``training/weights``, whose safetensors
    file ``python -m export --weights`` takes. A training that the model folder already holds is not repeated.

    Raises:
        UsageError: the data has no labels, or is not images.
    """
    if not isinstance(samples, ImageSamples):
        raise UsageError(f"{samples.name}: backbone and exits are trained together on images only; omit --train joint")
    _check_trainable(run, samples, "the network and its exits")
    model = ensure_model(run, report=options.report)
    if samples.preprocessing.in_graph:
        raise UsageError(
            f"{run.model} normalises its images itself (--input uint8), and training works on floats. Export it again "
            "without --input uint8, train, and export the trained weights with it"
        )
    task = options.task_of(model)
    parameters = {"mode": "joint", **to_plain(config), **samples.digests()}
    training = digest_of(parameters)
    if model.artifact.manifest.inputs.get("training") == training:
        options.report(f"{run.model} already holds this training")
        return model
    torch.set_num_threads(engine.threads)
    net = rebuild_net(model)
    options.report(
        f"training backbone and {len(net.cut_names)} exits of {model.spec.name} together for {config.epochs} epochs"
    )
    inputs = {"model": model.digest, **samples.digests()}
    checkpoint = Checkpoint(
        folder=run.training / "checkpoint", inputs=inputs, parameters=to_plain(config), notes=options.notes(run),
        report=options.report,
    )  # fmt: skip
    history = train_joint(net, samples, task, config, checkpoint)
    metric = measure_exits(net, samples, task, "test")
    measured = ", ".join(f"{name} {value:.4f}" for name, value in metric.items())
    options.report(f"{task.metric_name} on the test part: {measured}")
    record = {"training": to_plain(config), "history": history, "test_metric": metric}
    recipe = make_recipe(model, preprocessing=samples.preprocessing, dataset=samples.name, record=record)
    with new_artifact(
        run.training / "weights", kind="weights", inputs=inputs, parameters=parameters, notes=options.notes(run)
    ) as staging:
        save_weights(staging / "weights.safetensors", net)
        write_recipe(staging, recipe)
    return publish_net(model, net, inputs={**inputs, "training": training}, preprocessing=samples.preprocessing)


def _check_trainable(run: RunFolder, samples: Samples, what: str) -> None:
    """Refuses to train with a log of queries."""
    if not samples.labelled:
        raise UsageError(
            f"{samples.name} has no labels, and {what} in {run.model} are to be trained. Train with labelled data "
            f"first: python -m calibration --run {run.root} --data LABELLED; queries without labels calibrate what is "
            "trained"
        )


def _preprocessing(samples: Samples) -> Preprocessing | None:
    """Returns what a model records of how its images were prepared in training; ``None`` where they are no images."""
    return samples.preprocessing if isinstance(samples, ImageSamples) else None
