"""Training workflow: exit heads where they are missing, or a whole network with its exits; needs torch."""

from __future__ import annotations

import torch

from artifacts import (
    Model,
    Preprocessing,
    RunFolder,
    UsageError,
    digest_of,
    memory_limit,
    new_artifact,
    to_plain,
    work_alone,
    write_json,
)
from calibration.data.samples import ImageSamples, Samples
from calibration.data.sources import TRAINED_ON
from calibration.options import DEFAULT_OPTIONS, CalibrationOptions
from calibration.tracing.all_exits import EngineChoice, SegmentRunner, fit_rows
from calibration.tracing.network_check import ask_network
from calibration.training.candidates import CandidateRules, settle_candidates
from calibration.training.checkpoints import Checkpoint
from calibration.training.config import FrozenConfig, JointConfig
from calibration.training.end_to_end import measure_exits, train_joint
from calibration.training.features import FeatureMaker
from calibration.training.frozen import FrozenTask, train_frozen
from calibration.training.losses import settle_loss
from calibration.training.minibatches import training_indices
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

ASKED_ROWS = 16


@work_alone
def train_missing(
    run: RunFolder, samples: Samples, config: FrozenConfig, engine: EngineChoice,
    *, source: str | None = None, options: CalibrationOptions = DEFAULT_OPTIONS,
) -> Model:  # fmt: skip
    """Trains exit heads on the frozen backbone wherever a candidate has none.

    Of an imported network the candidates are chosen first (``calibration.training.candidates``). Without labels the
    heads learn from the full network's answers.

    Args:
        run: the run's folder.
        samples: the train part is trained on.
        config: how.
        engine: backend and threads.
        source: where the samples come from, recorded so that their train part is never calibrated on.
        options: task, memory, workers, command line and messages.

    Raises:
        InputError: the train part has no samples.
        GraphError: no exit head is worth its time.
    """
    model = ensure_model(run, report=options.report)
    if all(cut.name in model.spec.heads for cut in model.spec.cuts[:-1]):
        return model
    training_indices(samples, config)
    task = options.task_of(model)
    whole = model.whole()
    with SegmentRunner(whole, run.engines, engine, rows=ASKED_ROWS, with_heads=False) as runner:
        ask_network(whole, runner, samples, task, rows=ASKED_ROWS, options=options)
    rules = CandidateRules(most=config.max_candidates, head_share=config.head_share)
    model = settle_candidates(run, model, engine, rules, report=options.report)
    heads = build_missing_heads(model)
    teacher = "" if samples.labelled else " by the answers of the full network, since there are no labels"
    options.report(f"training {len(heads)} exit heads on the frozen backbone{teacher}: {', '.join(heads)}")
    torch.set_num_threads(engine.threads)
    inputs = {"model": model.digest, **samples.digests()}
    checkpoint = Checkpoint(
        folder=run.training / "checkpoint", inputs=inputs, parameters=to_plain(config), notes=options.notes(run),
        report=options.report,
    )  # fmt: skip
    rows = fit_rows(model.spec, memory_limit(options.memory_gb))
    what = FrozenTask(
        task=task, loss=settle_loss(task, samples),
        probabilities=model.spec.settings.get("confidence") == "max" and "answers" not in model.spec.settings,
        config=config,
    )  # fmt: skip
    with SegmentRunner(model, run.engines, engine, rows=rows, with_heads=False) as runner:
        maker = FeatureMaker(heads=heads, runner=runner, rows=rows, samples=samples, workers=options.workers)
        history = train_frozen(heads, maker, what, checkpoint, folder=run.training)
    parameters = {"mode": "frozen", **to_plain(config)}
    trained = add_heads(
        model, heads, inputs={**inputs, "training": digest_of(parameters)}, preprocessing=_preprocessing(samples),
        report=options.report,
    )  # fmt: skip
    notes = {**options.notes(run), **({} if source is None else {TRAINED_ON: source})}
    with new_artifact(
        run.training / "result", kind="training", inputs=inputs, parameters=parameters, notes=notes
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
    _check_labels(run, samples)
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
    history = train_joint(net, samples, task, config, checkpoint, workers=options.workers)
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


def _check_labels(run: RunFolder, samples: Samples) -> None:
    """Refuses to train a whole network without labels."""
    if not samples.labelled:
        raise UsageError(
            f"{samples.name} has no labels, and the network and its exits in {run.model} are to be trained together. "
            f"Train with labelled data: python -m calibration --run {run.root} --train joint --data LABELLED; exit "
            "heads alone learn from the network's own answers: omit --train joint"
        )


def _preprocessing(samples: Samples) -> Preprocessing | None:
    """Returns what a model records of how its images were prepared in training; ``None`` where they are no images."""
    return samples.preprocessing if isinstance(samples, ImageSamples) else None
