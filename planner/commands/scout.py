"""``python -m planner scout``: says what exits would save on a network, before anything is trained."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import MissingExtraError, RunFolder, UsageError, find_run, load_task, open_model, to_plain
from artifacts.console import add_common_arguments, print_table, run_command, say
from calibration import DATA_HELP, CalibrationOptions, load_run_data
from export import SOURCE_HELP, add_network_flags, find_wanted_family, read_name, read_options
from planner.flags import FLAGS, add_flags, read_config
from planner.scout.saving import WORTHWHILE, Saving

if TYPE_CHECKING:
    from artifacts import Model
    from export import ExportOptions, Family
    from planner.scout.scouting import Scouted

_FIELDS = ("batch_size", "backend", "threads", "certify.method", "certify.delta", "certify.seed")
_SAMPLES = 800
_VERDICTS = {
    "yes": "exits pay here. Train and plan them with: python -m planner {source}",
    "perhaps": "exits may pay here, and the probes alone cannot promise it. Trained exit heads can tell: "
    "python -m planner {source}",
    "no": "there is nothing to gain with exits here: not even an oracle saves {worthwhile:.0%} at these tolerances",
}


def make_parser(family: Family | None = None) -> argparse.ArgumentParser:
    """Returns the command line, with the options of a family."""
    parser = argparse.ArgumentParser(
        prog="python -m planner scout",
        description="Say what exits would save on a network: its cuts are timed, linear probes at them are fitted on "
        "one half of a few hundred samples and judged on the other. Nothing is trained, and nothing is kept but, "
        "with --run, the exported network.",
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", help=f"{SOURCE_HELP} (default: the run's own network)")
    add_common_arguments(parser)
    parser.set_defaults(segments=True)  # which is a flag of python -m export alone
    parser.add_argument("--data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--samples", type=int, default=_SAMPLES, metavar="N", help="probe with at most N samples (default: %(default)s)"
    )
    parser.add_argument("--task", metavar="TASK", help="what the answers mean (default: as the network says)")
    add_network_flags(parser, family)
    add_flags(parser, [flag for flag in FLAGS if flag.field in _FIELDS])
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    try:
        family = find_wanted_family(argv, make_parser)
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return run_command(lambda parsed: scout(parsed, family), make_parser(family).parse_args(argv))


def scout(arguments: argparse.Namespace, family: Family | None) -> dict[str, Any]:
    """Scouts, prints what was found and returns the result for ``--json``."""
    began = time.monotonic()
    if arguments.samples < 1:
        raise UsageError(f"--samples {arguments.samples}: expected at least 1")
    defaults = argparse.ArgumentParser()
    add_flags(defaults)
    config = read_config(argparse.Namespace(**{**vars(defaults.parse_args([])), **vars(arguments)}))
    export = None if arguments.source is None else read_options(arguments, family)
    if export is not None:
        read_name(arguments, export)
    try:
        from planner.scout.scouting import scout_network
    except ModuleNotFoundError as error:
        extra = "export" if export is None else export.extra
        raise MissingExtraError((error.name or "").partition(".")[0], extra) from error
    asked = [*([] if export is None else [arguments.source, *export.flags()]),
             *([] if arguments.run is None else ["--run", str(arguments.run)]),
             *([] if arguments.data is None else ["--data", arguments.data])]  # fmt: skip
    task = None if arguments.task is None else load_task(arguments.task)
    command = f"python -m planner scout {shlex.join(asked)}"
    options = CalibrationOptions(task=task, report=say, command=command, force=True)
    with _open_network(arguments.run, export, arguments.data) as (run, model):
        samples = load_run_data(run, arguments.data, report=say)
        found = scout_network(run, model, samples, config, count=arguments.samples, options=options)
    seconds = time.monotonic() - began
    print_scouted(found, source=shlex.join(asked), seconds=seconds)
    return {**to_plain(found), "source": arguments.source, "seconds": round(seconds, 1)}


@contextlib.contextmanager
def _open_network(
    folder: Path | None, export: ExportOptions | None, data: str | None
) -> Iterator[tuple[RunFolder, Model]]:
    """Opens the network of a run, or exports one, into a temporary folder where none was named."""
    from calibration import rows_of
    from export import export_model
    from planner.workflow.from_source import check_same_source

    if export is None:
        run = find_run(folder)
        yield run, open_model(run.model, remedy=run.remedy("export"))
        return
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pame-scout-"))) / export.run_name
        run = RunFolder(root=folder)
        check_same_source(run, export)
        say(f"looking for cuts in {export.source}")
        yield run, export_model(run, replace(export, rows=rows_of(data))).model


def print_scouted(found: Scouted, *, source: str, seconds: float) -> None:
    """Prints the cuts, the range of the saving, and the verdict."""
    word = "accuracy" if found.labelled else "agreement"
    rows = [
        [
            cut.name,
            f"{cut.reached_ms:.3f}",
            f"{cut.share:.0%}",
            *([] if cut.metric is None else [f"{cut.metric:.3f}"]),
            f"{cut.agreement:.3f}",
        ]
        for cut in found.cuts
    ]
    columns = ["cut", "reached after ms", "of full", *(["accuracy"] if found.labelled else []), "agrees with full"]
    full = f"{found.full_ms:.3f} ms"
    if found.full_metric is not None:
        full += f", right on {found.full_metric:.1%} (the most frequent class alone: {found.chance:.1%})"
    print_table(
        f"{found.model}: linear probes on {found.samples} samples of {found.data}, judged on held-out halves; full "
        f"network in batches of {found.batch_size} on {found.engine} with {found.threads} threads: {full}",
        columns,
        rows,
    )
    print()
    print_table(
        f"saving of the mean latency to expect, {word} kept",
        ["tolerance", "at least", "at most", "lost by the probes", "note"],
        [
            [f"{saving.tolerance:.1%}", f"{saving.at_least:.0%}", f"{saving.at_most:.0%}", f"{saving.lost:.1%}",
             _note(saving)]
            for saving in found.savings
        ],
    )  # fmt: skip
    print(
        "\nat least: thresholds tuned on one half of the samples pass the certificate's test on the other, and would "
        "with as few\nsamples as planning tests on; less a limit of the mean and what heads may cost. at most: every "
        "sample leaves at\nthe first cut whose probe answers as well as the network.\n"
        f"verdict: {_VERDICTS[found.verdict].format(source=source, worthwhile=WORTHWHILE)} ({seconds:.0f} s)"
    )


def _note(saving: Saving) -> str:
    return "too few samples to certify it" if saving.certifiable is False else ""
