"""Flags of the planner: one table that says which flag sets which field of ``PlanConfig``.

``python -m planner`` makes its parser from the table and reads the config back by it; manifests and reports write a
config as flags by it. A field of the config that is not in the table has no flag.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts import UsageError, allowed_processors, to_plain, unknown_name
from calibration import RISKS
from engines import BACKENDS, PROFILE_WAYS
from planner.config import CERTIFY_METHODS, CONFIDENCES, REFERENCES, PlanConfig, TimingConfig, batch_sizes_up_to
from planner.load_file import read_load
from planner.predict.objectives import OBJECTIVES
from planner.predict.traffic import Load
from planner.search.rules import OFFERED_SEARCHES

_DEFAULT = PlanConfig()
_LOAD, _BATCH_SIZE, _BATCH_SIZES, _THREADS = "load", "batch_size", "timing.batch_sizes", "threads"
_BACKEND = "backend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag and the field of ``PlanConfig`` that it sets.

    Attributes:
        name: as it is typed, e.g. ``--delta``.
        field: where its value goes, with dots through the parts of the config, e.g. ``certify.delta``.
        read: makes the value from the text.
        help: its line in ``--help``; ``%(default)s`` stands for the field's default.
        group: the heading of ``--help`` under which it is listed; empty for the first one.
        choices: the values that may be given; ``None``: any that ``read`` takes.
        metavar: the word for the value in ``--help``; ``None``: the name of the flag.
        derived: True where the value is worked out from other flags, or from the machine, unless it is given.
    """

    name: str
    field: str
    read: Callable[[str], Any] = str
    help: str
    group: str = ""
    choices: Collection[str] | None = None
    metavar: str | None = None
    derived: bool = False

    @property
    def attribute(self) -> str:
        """The name of the value in argparse's namespace."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def default(self) -> Any:
        """The default of the parser."""
        return None if self.derived else read_field(_DEFAULT, self.field)


def _read_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected numbers with commas, e.g. 1,8,32") from None


FLAGS: tuple[Flag, ...] = (
    Flag(
        name="--tolerance",
        field="tolerance",
        read=float,
        help="allowed relative loss of the metric: 0.01 keeps 99 %% (default: %(default)s)",
    ),
    Flag(
        name="--batch-size",
        field=_BATCH_SIZE,
        read=int,
        derived=True,
        help=f"queries per batch (default: {_DEFAULT.batch_size}, or the largest of --batch-distribution)",
    ),
    Flag(
        name="--batch-distribution",
        field=_LOAD,
        read=Path,
        metavar="FILE",
        help="instead of --batch-size: JSON or CSV, batch size -> share or count of the batches that enter",
    ),
    Flag(
        name="--engine",
        field=_BACKEND,
        derived=True,
        help=f"engine backend (default: that of the run's trace, else {_DEFAULT.backend})",
    ),
    Flag(
        name="--profiles",
        field="profiles",
        choices=PROFILE_WAYS,
        help="TensorRT's shape profiles (default: the backend's)",
    ),
    Flag(name="--threads", field=_THREADS, read=int, derived=True, help="threads of each engine (default: all cores)"),
    Flag(name="--search", field="search", choices=OFFERED_SEARCHES, help="how to search (default: %(default)s)"),
    Flag(
        name="--certify",
        field="certify.method",
        choices=CERTIFY_METHODS,
        group="certificate",
        help="ltt: the tolerance holds on data that was not tuned on, except with probability --delta; "
        "none: the paper's way, no guarantee (default: %(default)s)",
    ),
    Flag(
        name="--delta",
        field="certify.delta",
        read=float,
        group="certificate",
        help="probability with which the guarantee may fail (default: %(default)s)",
    ),
    Flag(
        name="--risk",
        field="certify.risk",
        choices=RISKS,
        group="certificate",
        help="what --tolerance bounds: relative loss of the metric; disagreement with the final head, which needs no "
        "labels; relative loss of F1 or of the Matthews correlation, by bootstrap (default: %(default)s)",
    ),
    Flag(
        name="--certify-seed",
        field="certify.seed",
        read=int,
        group="certificate",
        metavar="N",
        help="decides which samples are tuned on, a fifth of them, and which are tested on (default: %(default)s)",
    ),
    Flag(
        name="--reference",
        field="certify.reference",
        choices=REFERENCES,
        group="certificate",
        help="of a network that is not computed in float32: what --tolerance is a loss against, the same in float32 "
        "or the network itself (default: fp32)",
    ),
    Flag(
        name="--objective",
        field="objective",
        choices=OBJECTIVES,
        group="search",
        help="what to minimise: latency of the mean query, its 99th percentile, or the time until a whole batch is "
        "done (default: %(default)s)",
    ),
    Flag(
        name="--confidence",
        field="confidence",
        choices=CONFIDENCES,
        group="search",
        help="by what rows leave: their largest probability; a model of each exit that is fitted to the samples for "
        "tuning; auto: the one with the faster plan on these (default: %(default)s)",
    ),
    Flag(
        name="--max-exits",
        field="max_exits",
        read=int,
        group="search",
        metavar="N",
        help="the most exits of a plan (default: as many as pay)",
    ),
    Flag(
        name="--grid-step",
        field="grid_step",
        read=float,
        group="search",
        help="distance of the greedy search's thresholds (default: %(default)s)",
    ),
    Flag(
        name="--tail-share",
        field="tail.share",
        read=float,
        group="search",
        help="share of batches that must not be slower than the full network (default: %(default)s)",
    ),
    Flag(
        name="--tail-allowance",
        field="tail.allowance",
        read=float,
        group="search",
        help="relative excess that counts as not slower (default: %(default)s)",
    ),
    Flag(
        name="--stay-allowance",
        field="tail.stay_allowance",
        read=float,
        group="search",
        help="relative excess that a batch may cost from which no row leaves early; a larger one lets more exits in "
        "(default: %(default)s)",
    ),
    Flag(
        name="--batch-sizes",
        field=_BATCH_SIZES,
        read=_read_sizes,
        group="timing",
        metavar="N,N,...",
        derived=True,
        help="batch sizes to time, up to --batch-size (default: 1,2,4,8,12,16,24,32 and on)",
    ),
    Flag(
        name="--rounds",
        field="timing.rounds",
        read=int,
        group="timing",
        help="timed runs per engine and batch size (default: %(default)s)",
    ),
    Flag(
        name="--time-budget",
        field="timing.budget_s",
        read=float,
        group="timing",
        metavar="S",
        help="seconds after which timing stops early (default: %(default)s)",
    ),
    Flag(
        name="--max-engines",
        field="max_engines",
        read=int,
        group="timing",
        metavar="N",
        help="the most engines of the bundle, for backends whose engines are bound to a batch size (default: any)",
    ),
    Flag(
        name="--memory-mb",
        field="memory_mb",
        read=float,
        group="timing",
        metavar="MB",
        help="likewise, the most megabytes of engine files (default: any)",
    ),
    Flag(
        name="--contenders",
        field="measure.contenders",
        read=int,
        group="timing",
        help="how many of the best plans are measured end to end (default: %(default)s)",
    ),
)
BY_FIELD: Mapping[str, Flag] = {flag.field: flag for flag in FLAGS}


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag] = FLAGS) -> None:
    """Adds flags of the table to a command line, each under its heading."""
    groups: dict[str, Any] = {"": parser}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        groups[flag.group].add_argument(
            flag.name, type=flag.read, default=flag.default, choices=flag.choices, metavar=flag.metavar, help=flag.help
        )


def read_config(arguments: argparse.Namespace) -> PlanConfig:
    """Turns the flags into a validated config.

    Raises:
        UsageError: a value cannot be, or two of them contradict each other.
    """
    values = {flag.field: getattr(arguments, flag.attribute) for flag in FLAGS}
    batch_size, load = read_batches(arguments)
    values[_BACKEND] = values[_BACKEND] or _DEFAULT.backend
    if values[_BACKEND] not in BACKENDS:
        raise unknown_name("engine backend", values[_BACKEND], BACKENDS)
    sizes = values[_BATCH_SIZES] or _DEFAULT.timing.batch_sizes
    TimingConfig(batch_sizes=sizes)
    values[_BATCH_SIZE], values[_LOAD] = batch_size, load
    values[_BATCH_SIZES] = batch_sizes_up_to(batch_size, sizes)
    values[_THREADS] = allowed_processors() if values[_THREADS] is None else values[_THREADS]
    return set_fields(_DEFAULT, values)


def read_batches(arguments: argparse.Namespace) -> tuple[int, Load | None]:
    """Returns what ``--batch-size`` and ``--batch-distribution`` say: the largest batch, and the load.

    Raises:
        UsageError: the file cannot be read, or the batch size is below 1.
        InputError: the file holds no distribution.
    """
    path, batch_size = getattr(arguments, BY_FIELD[_LOAD].attribute), arguments.batch_size
    load = None if path is None else read_load(path)
    if batch_size is None:
        batch_size = _DEFAULT.batch_size if load is None else load.largest
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1")
    return batch_size, load


def read_field(config: PlanConfig, field: str) -> Any:
    """Returns the value of a field, by its name with dots through the parts of the config."""
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return value


def set_fields(config: PlanConfig, values: Mapping[str, Any]) -> PlanConfig:
    """Returns a config with other values in some fields, by their names with dots."""
    own = {field: value for field, value in values.items() if "." not in field}
    parts: dict[str, dict[str, Any]] = {}
    for field, value in values.items():
        part, dot, name = field.partition(".")
        if dot:
            parts.setdefault(part, {})[name] = value
    return replace(config, **own, **{part: replace(getattr(config, part), **inner) for part, inner in parts.items()})


def write_flags(
    config: PlanConfig,
    *,
    explicit: Collection[str] = (_THREADS,),
    omitted: Collection[str] = (),
    distribution: Path | None = None,
) -> list[str]:
    """Returns the flags that make a config: those whose value is not the parser's default.

    Args:
        config: what is asked for.
        explicit: fields whose flag is written even then.
        omitted: fields whose flag is not written.
        distribution: the file that the load was read from; where it is not known, ``FILE`` stands for it.
    """
    words: list[str] = []
    for flag in FLAGS:
        value = read_field(config, flag.field)
        usual = flag.field not in explicit and value == _usual(config, flag)
        if value is None or usual or flag.field in omitted:
            continue
        words += [flag.name, str(distribution or "FILE") if flag.field == _LOAD else _write(value)]
    return words


def list_flagless(config: PlanConfig) -> list[str]:
    """Returns ``field = value`` for all that is not the default and that no flag says."""
    usual = _flatten(to_plain(_DEFAULT))
    return [f"{field} = {value}" for field, value in _flatten(to_plain(config)).items() if value != usual[field]]


def planner_command(
    run: Path,
    config: PlanConfig,
    *,
    data: str | Path | None = None,
    distribution: Path | None = None,
    sweep: Sequence[float] | None = None,
) -> str:
    """Returns the command line that plans a run again, or sweeps it.

    Args:
        run: the run's folder.
        config: what is asked for.
        data: ``--data``, as it was given; ``None``: it was not.
        distribution: ``--batch-distribution``, likewise.
        sweep: the tolerances of ``--sweep``, () for the whole range; ``None``: no sweep.
    """
    words = ["python", "-m", "planner"]
    if sweep is not None:
        words += ["--sweep", *([",".join(map(str, sweep))] if sweep else [])]
    words += ["--run", str(run)]
    if data is not None:
        words += ["--data", str(data)]
    omitted = () if sweep is None else ("tolerance",)
    return shlex.join([*words, *write_flags(config, omitted=omitted, distribution=distribution)])


def _usual(config: PlanConfig, flag: Flag) -> Any:
    """Returns the value that a field has when its flag is not given."""
    if flag.field == _BATCH_SIZES:
        return batch_sizes_up_to(config.batch_size)
    if flag.field == _BATCH_SIZE and config.load is not None:
        return config.load.largest
    return read_field(_DEFAULT, flag.field)


def _write(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields that have no flag, by their names with dots."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        field = f"{prefix}{name}"
        if field in BY_FIELD:
            continue
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{field}.")
        else:
            flat[field] = value
    return flat
