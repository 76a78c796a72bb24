"""Training workflow: exit heads where they are missing, or a whole network with its exits; needs torch."""

from __future__ import annotations

import shutil

from artifacts import (
    Model,
    Preprocessing,
    RunFolder,
    UsageError,
    digest_of,
    new_artifact,
    work_alone,
    write_json,
)
from calibration.data.samples import ImageSamples, Samples
from calibration.data.sources import TRAINED_ON
from calibration.options import DEFAULT_OPTIONS, CalibrationOptions
from calibration.tracing.all_exits import EngineChoice, SegmentRunner
from calibration.tracing.network_check import ask_network
from calibration.training.candidates import CandidateRules, settle_candidates
from calibration.training.config import FrozenConfig, JointConfig, describe_training
from calibration.training.end_to_end import measure_exits
from calibration.training.jobs import TrainingJob, train_heads, train_net
from calibration.training.minibatches import training_indices
from calibration.training.processes import Processes
from export import add_heads, ensure_model, make_recipe, publish_net, save_weights, write_recipe

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
        options: task, memory, workers, command line, messages, and the processes that train together; those beside the
            first follow (``calibration.training.following``).

    Raises:
        InputError: the train part has no samples.
        GraphError: no exit head is worth its time.
        ArtifactError: nothing can be written to the run.
    """
    model = ensure_model(run, report=options.report)
    if all(cut.name in model.spec.heads for cut in model.spec.cuts[:-1]):
        return model
    run.check_writable()
    training_indices(samples, config)
    processes = options.processes or Processes(config.mixed_precision, workers=options.workers)
    task = options.task_of(model)
    whole = model.whole()
    with SegmentRunner(whole, run.engines, engine, rows=ASKED_ROWS, with_heads=False) as runner:
        ask_network(whole, runner, samples, task, rows=ASKED_ROWS, options=options)
    rules = CandidateRules(most=config.max_candidates, head_share=config.head_share)
    model = settle_candidates(run, model, engine, rules, report=options.report)
    teacher = "" if samples.labelled else " by the answers of the full network, since there are no labels"
    job = TrainingJob(run=run, model=model, samples=samples, engine=engine, options=options, processes=processes)
    missing = [cut.name for cut in model.spec.cuts[:-1] if cut.name not in model.spec.heads]
    options.report(
        f"training {len(missing)} exit heads on the frozen backbone{teacher}{job.describe()}: {', '.join(missing)}"
    )
    processes.call()
    heads, history = train_heads(job, config)
    parameters = {"mode": "frozen", **describe_training(config)}
    notes = {**options.notes(run), **({} if source is None else {TRAINED_ON: source})}
    with new_artifact(
        run.training / "result", kind="training", inputs=job.inputs, parameters=parameters, notes=notes
    ) as staging:
        write_json(staging / "history.json", history)
    return add_heads(  # last: with heads in it, the record must say what their data was, and how it was split
        model, heads, inputs={**job.inputs, "training": digest_of(parameters)}, preprocessing=_preprocessing(samples),
        report=options.report,
    )  # fmt: skip


@work_alone
def retrain_jointly(
    run: RunFolder, samples: Samples, config: JointConfig, engine: EngineChoice,
    *, options: CalibrationOptions = DEFAULT_OPTIONS,
) -> Model:  # fmt: skip
    """Trains backbone and exits of a torch family together, starting from the weights in the model folder.

    The result is published twice: as the run's model, and with its recipe as ``training/weights``, whose safetensors
    file ``python -m export --weights`` takes. A training that the model folder already holds is not repeated.

    Args:
        run: the run's folder.
        samples: with labels.
        config: how.
        engine: its threads are used.
        options: as for ``train_missing``.

    Raises:
        UsageError: the data has no labels.
        ArtifactError: nothing can be written to the run.
    """
    _check_labels(run, samples)
    model = ensure_model(run, report=options.report)
    config = config.fit(model.spec.full.inputs, model.spec.task)
    pixels = _preprocessing(samples)
    if pixels is not None and pixels.in_graph:
        raise UsageError(
            f"{run.model} normalises its images itself (--input uint8), and training works on floats. Export it again "
            "without --input uint8, train, and export the trained weights with it"
        )
    if model.spec.reference is not None:
        raise UsageError(
            f"{run.model} is quantised, and training works on floats. Export it again without --precision "
            f"{model.spec.precision}, train, and export the trained weights with it: python -m export FAMILY --weights "
            f"{run.training / 'weights' / 'weights.safetensors'} --precision {model.spec.precision} --data DATA"
        )
    parameters = {"mode": "joint", **describe_training(config), **samples.digests()}
    training = digest_of(parameters)
    if model.artifact.manifest.inputs.get("training") == training:
        options.report(f"{run.model} already holds this training")
        return model
    run.check_writable()
    processes = options.processes or Processes(config.mixed_precision, workers=options.workers)
    job = TrainingJob(run=run, model=model, samples=samples, engine=engine, options=options, processes=processes)
    options.report(
        f"training backbone and exits of {model.spec.name} together for {config.epochs} epochs{job.describe()}"
    )
    processes.call()
    net, history = train_net(job, config)
    task = options.task_of(model)
    metric = measure_exits(net, samples, task, "test", workers=options.workers)
    measured = ", ".join(f"{name} {value:.4f}" for name, value in metric.items())
    options.report(f"{task.metric_name} on the test part: {measured}")
    record = {"training": describe_training(config), "history": history, "test_metric": metric}
    recipe = make_recipe(model, preprocessing=pixels, dataset=samples.name, record=record)
    with new_artifact(
        run.training / "weights", kind="weights", inputs=job.inputs, parameters=parameters, notes=options.notes(run)
    ) as staging:
        save_weights(staging / "weights.safetensors", net)
        write_recipe(staging, recipe)
        if model.spec.text is not None:
            tokenizer = model.spec.text.tokenizer
            shutil.copyfile(model.artifact.path(tokenizer), staging / tokenizer)
    return publish_net(model, net, inputs={**job.inputs, "training": training}, preprocessing=pixels)


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
