"""Following: what all processes but the first do when several train one network: they wait, train, and go."""

from __future__ import annotations

from collections.abc import Callable

from artifacts import Model, RunFolder, open_model
from calibration.data.samples import Samples
from calibration.options import CalibrationOptions
from calibration.tracing.all_exits import EngineChoice
from calibration.training.config import FrozenConfig, JointConfig
from calibration.training.jobs import TrainingJob, train_heads, train_net
from calibration.training.processes import Processes


def follow_training(
    run: RunFolder, load: Callable[[], Samples], config: FrozenConfig | JointConfig, engine: EngineChoice,
    *, options: CalibrationOptions, processes: Processes,
) -> None:  # fmt: skip
    """Trains beside the first process, which has exported the network, asked it, and chosen the exit candidates.

    Args:
        run: the run's folder, which all processes share.
        load: opens the samples, once the network is there.
        config: how.
        engine: backend and threads.
        options: task, memory and workers; its messages go nowhere but for errors.
        processes: all of them.

    Raises:
        PameError: this process does not find the network or the data that the first one found.
    """
    if not processes.wait():
        return
    model: Model = open_model(run.model, remedy="let all machines share the run's folder")
    job = TrainingJob(run=run, model=model, samples=load(), engine=engine, options=options, processes=processes)
    if isinstance(config, JointConfig):
        train_net(job, config)
    else:
        train_heads(job, config)
