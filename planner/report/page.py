"""Page of a report: data and pictures in, one HTML string out.

The page needs no network and no other file: the styles are in it, pictures are PNGs in base64, nothing is a script.
Everything that comes from data goes through ``html.escape``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from artifacts import FINAL_HEAD_LABEL, PlannedExit, to_plain
from planner.predict.objectives import BATCH, MEAN, OBJECTIVE_WORDS, P99, time_ms
from planner.report.captions import caption_of, describe_measured, plural, summarise
from planner.report.data import ReportData, headline, survivor_chain
from planner.sweep.points import OperatingPoint

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #5b6577; --line: #d9dee5; --blue: #0b6e99; --paper: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0; background: white; color: var(--ink); font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 50rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .75rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
p { margin: 0 0 1rem; } a { color: var(--blue); }
.lead { font-size: 1.15rem; } .soft { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; padding: 0; list-style: none; }
.facts li { flex: 1 1 7.5rem; background: var(--paper); border-radius: .5rem; padding: .8rem 1rem; }
.facts b { display: block; font-size: 1.6rem; line-height: 1.2; color: var(--blue);
  font-variant-numeric: tabular-nums; }
.facts span { font-size: .9rem; color: var(--soft); }
nav ol { columns: 2; padding-left: 1.25rem; margin: 0; } nav li { break-inside: avoid; }
figure { margin: 1.25rem 0 1.5rem; } figure img { width: 100%; height: auto; display: block; }
figcaption { margin-top: .6rem; }
.wide { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; } .n { text-align: right; } td.n { white-space: nowrap; }
td:first-child { min-width: 5.5rem; } .plans td:first-child { min-width: 13rem; } tr.mine td { background: #eaf4f8; }
.pairs td { overflow-wrap: anywhere; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
code, pre { font: .87rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--paper); border-radius: .5rem; padding: .9rem 1rem; white-space: pre-wrap; }
@media print { h2 { break-after: avoid; } figure { break-inside: avoid; } nav { display: none; } }
"""

_WORDS = {
    "exit": "a place inside the network where a small extra head answers, so that a query need not go to the end",
    "confidence": "one number per query, computed by the head: how sure it is of its answer",
    "threshold": "a query leaves at an exit when its confidence there is at least this",
    "tolerance": "how much of the full network's metric may be given up: 0.01 keeps 99%",
    "survivors": "the queries of a batch that go on; the batch really becomes smaller",
    "stage": "the part of the network between two exits of the plan, compiled as one engine",
    "latency": "the time from the start of a query's batch until its own answer is ready",
}
_WORDS_OF_AGREEMENT = {
    "tolerance": "the share of the queries whose answer may differ from the full network's: 0.01 keeps 99%",
}

_SECTIONS = (
    ("plan", "The plan"),
    ("cut_graph", "The network and its exits"),
    ("accuracy_by_depth", "How good is an answer at each depth?"),
    ("threshold_curves", "What does a threshold do?"),
    ("batching_pattern", "How many queries go on?"),
    ("inference_times", "What does each part cost?"),
    ("survivors", "How the batch shrinks"),
    ("latency", "Latency, full network against early exits"),
    ("answers", "Early answers beside the final ones"),
    ("pareto", "Tolerance against latency"),
    ("certificate", "What is guaranteed"),
    ("environment", "Where this was measured"),
    ("commands", "How to make it again"),
)
_NO_FIGURE = {
    "accuracy_by_depth": "The network has no exit candidates.",
    "threshold_curves": "The network has no exit candidates.",
    "batching_pattern": "No candidate keeps the tolerance at any threshold, so no query would leave.",
}


def render_report(data: ReportData, pictures: Mapping[str, bytes]) -> str:
    """Returns the whole page.

    Args:
        data: the run.
        pictures: figure name -> PNG; in the place of a missing figure the page says why it is missing.
    """
    bodies = {
        "plan": _plan_body(data),
        "certificate": _certificate_body(data),
        "environment": _environment_body(data),
        "commands": _commands_body(data),
    }
    sections = []
    for name, title in _sections(data):
        body = bodies.get(name) or _figure_body(name, title, data, pictures)
        sections.append(f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>')
    title = escape(f"{data.spec.name}: early exits")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n{_top(data)}\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _sections(data: ReportData) -> list[tuple[str, str]]:
    """Returns the sections that there are: pictures of answers only where answers are pictures."""
    return [section for section in _SECTIONS if section[0] != "answers" or data.examples is not None]


def render_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: int = 1,
    caption: str = "",
    kind: str = "",
    marked: Sequence[bool] | None = None,
) -> str:
    """Returns a table: the first ``text`` columns to the left, numbers behind them to the right; all escaped.

    Args:
        columns: titles; no line of titles when all are empty.
        rows: cells.
        text: how many columns hold text.
        caption: above the table.
        kind: its class.
        marked: which rows are highlighted.
    """

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{kind}>{escape(cell)}</{kind}>" if place < text else f'<{kind} class="n">{escape(cell)}</{kind}>'
            for place, cell in enumerate(row)
        )

    flags = marked or [False] * len(rows)
    body = "".join(
        f'<tr class="mine">{cells("td", row)}</tr>' if flag else f"<tr>{cells('td', row)}</tr>"
        for row, flag in zip(rows, flags, strict=True)
    )
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if any(columns) else ""
    return f'<div class="wide"><table class="{kind}">{above}{head}<tbody>{body}</tbody></table></div>'


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _pairs(pairs: Mapping[str, Any]) -> str:
    return render_table(("", ""), [(str(name), _show(value)) for name, value in pairs.items()], text=2, kind="pairs")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_show(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    return "none" if value is None else str(value)


def _top(data: ReportData) -> str:
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in _sections(data))
    meanings = {**_WORDS, **(_WORDS_OF_AGREEMENT if data.plan.risk == "agreement" else {})}
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in meanings.items())
    about = (
        "A deep network answers a batch of queries together, and every query waits for the last layer, although many "
        "could be answered sooner. Here small heads inside the network answer on the way: a query whose answer is "
        "confident enough leaves with it, and the network goes on with the rest of the batch. Which heads, and how "
        "confident is enough, was chosen so that as much time as possible is saved while the answers stay about as "
        "good."
    )
    return (
        f"{_paragraph(summarise(data), 'lead')}{_facts(data)}{_paragraph(about)}"
        f"<details><summary>The words of this page</summary><dl>{words}</dl></details>"
        f"<nav><h2>Contents</h2><ol>{links}</ol></nav>"
    )


def _facts(data: ReportData) -> str:
    found = headline(data)
    facts = [(f"{found.speedup:.2f}×", "mean query, times as fast")]
    if found.speedup_p99 is not None:
        facts.append((f"{found.speedup_p99:.2f}×", "99th percentile, times as fast"))
    if found.metric_ratio is not None:
        what = "of the answers as by the full network" if found.agreement else f"of the {data.task_word} kept"
        facts.append((f"{found.metric_ratio:.2%}", what))
    facts.append((f"{data.plan.tolerance:.3g}", "tolerance asked for"))
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>" for value, what in facts)
    return f'<ul class="facts">{items}</ul>'


def _figure_body(name: str, title: str, data: ReportData, pictures: Mapping[str, bytes]) -> str:
    if name not in pictures:
        return _paragraph(data.bench_note if name == "latency" else _NO_FIGURE[name], "soft")
    source = base64.b64encode(pictures[name]).decode("ascii")
    caption = escape(caption_of(name, data))
    extra = {"latency": _latency_table, "pareto": _sweep_table, "survivors": _survivor_table}.get(name)
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{escape(title)}"><figcaption>{caption}</figcaption>'
        f"</figure>{extra(data) if extra else ''}"
    )


def _plan_body(data: ReportData) -> str:
    plan = data.plan
    chain = survivor_chain(data)
    rows = [_exit_row(exit_) for exit_ in plan.exits]
    rest = chain.leaving[-1]
    before = sum(exit_.leaving_share * exit_.metric for exit_ in plan.exits if exit_.metric is not None)
    last = f"{(plan.predicted_metric - before) / rest:.4f}" if rest > 0 else "-"
    rows.append([FINAL_HEAD_LABEL, "-", f"{rest:.1%}", last, "-"])
    what = (
        f"{plan.search} search on {data.trace.sample_count} calibration samples, for batches of {plan.batch_size} on "
        f"{plan.backend} with {plural(plan.threads, 'thread')}"
    )
    kept = (
        f"On the calibration data the plan has {data.metric_word} {plan.predicted_metric:.4f}, the full network "
        f"{plan.full_metric:.4f}: {plan.predicted_metric / plan.full_metric:.2%} is kept, and at least "
        f"{1 - plan.tolerance:.2%} was asked for. "
    )
    if plan.risk == "agreement":
        kept = (
            f"Of the calibration queries {plan.predicted_metric:.2%} get the full network's answer, and at least "
            f"{1 - plan.tolerance:.2%} was asked for. "
        )
    columns = ("exit", "threshold", "leave here", f"{data.metric_word} there", "arrival, ms")
    return render_table(columns, rows, caption=what) + _paragraph(kept + describe_measured(data))


def _exit_row(exit_: PlannedExit) -> list[str]:
    metric = "-" if exit_.metric is None else f"{exit_.metric:.4f}"
    return [exit_.cut, f"{exit_.threshold:.4g}", f"{exit_.leaving_share:.1%}", metric, f"{exit_.arrival_ms:.3f}"]


def _survivor_table(data: ReportData) -> str:
    chain = survivor_chain(data)
    rows = [
        [
            f"{place + 1}, up to {name}",
            f"{chain.expected[place]:.2f}",
            f"{chain.low[place]} to {chain.high[place]}",
            f"{chain.recorded_low[place]} to {chain.recorded_high[place]}",
            f"{chain.leaving[place]:.1%}",
        ]
        for place, name in enumerate(chain.stages)
    ]
    columns = ("stage", "rows, mean", "98 of 100 batches", "in the data's order", "leave at its end")
    return render_table(columns, rows)


def _latency_table(data: ReportData) -> str:
    if data.bench is None:
        return ""
    full, early = data.bench["full"], data.bench["early_exit"]
    rows = [
        [title, f"{full[key]:.3f}", f"{early[key]:.3f}", f"{full[key] / early[key]:.2f}" if early[key] else "-"]
        for title, key in (
            ("mean latency, ms", "mean_latency_ms"),
            ("median latency, ms", "p50_ms"),
            ("99th percentile, ms", "p99_ms"),
            ("whole batch, ms", "batch_ms"),
        )
    ]
    rows.append(
        [
            "queries per second",
            f"{full['throughput_per_s']:.0f}",
            f"{early['throughput_per_s']:.0f}",
            f"{data.bench['throughput_ratio']:.2f}",
        ]
    )
    ratio = data.bench["metric_ratio"]
    if full["metric"] is None:
        rows.append(["same answer as the full network", "-", f"{data.bench['agreement']:.4f}", "-"])
    else:
        kept = "-" if ratio is None else f"{ratio:.4f}"
        rows.append([data.task_word, f"{full['metric']:.4f}", f"{early['metric']:.4f}", kept])
    return render_table(("", "full network", "early exits", "gain (or kept)"), rows)


def _sweep_table(data: ReportData) -> str:
    shown = (MEAN, P99, BATCH) if data.sweep.objective == P99 else (MEAN, BATCH)
    rows = [
        [
            _name_plan(point),
            f"{point.tolerance:.2%}",
            f"{point.metric_ratio:.2%}",
            *(f"{time_ms(point, name):.3f}" for name in shown),
            f"{point.speedup:.2f}",
            "yes" if point.efficient else "no",
        ]
        for point in data.sweep.points
    ]
    columns = ("plan", "tolerance", "kept", *(f"{name}, ms" for name in shown), "times as fast", "best")
    note = (
        "Operating points: metric on the calibration data, expected times. “best”: no other keeps as much with a "
        f"smaller {OBJECTIVE_WORDS[data.sweep.objective]}, by which “times as fast” is measured, too. Shaded: the "
        "tolerance of the plan."
    )
    marked = [point.tolerance == data.plan.tolerance for point in data.sweep.points]
    refused = "".join(
        _paragraph(f"No plan at tolerance {refusal.tolerance:.3g}: {refusal.reason}", "soft")
        for refusal in data.sweep.refused
    )
    return render_table(columns, rows, caption=note, marked=marked, kind="plans") + refused


def _name_plan(point: OperatingPoint) -> str:
    pairs = zip(point.exits, point.thresholds, strict=True)  # no line break within a pair
    return ", ".join(f"{cut}\u00a0≥\u00a0{threshold:.3g}" for cut, threshold in pairs) or "no exits"


def _certificate_body(data: ReportData) -> str:
    plan = data.plan
    if plan.certificate is None:
        return _paragraph(
            "None: the paper's way. The thresholds were tuned on the calibration data and the tolerance is known to "
            "hold there; nothing is guaranteed for other data. The result of a test on held-out data, if one was made, "
            "is under “Latency”."
        )
    fields: dict[str, Any] = to_plain(plan.certificate)
    return _paragraph(_state_certificate(fields, data)) + _pairs(
        {name.replace("_", " "): value for name, value in fields.items()}
    )


def _state_certificate(fields: Mapping[str, Any], data: ReportData) -> str:
    delta, bound = fields.get("delta", data.plan.delta), fields.get("bound", data.plan.tolerance)
    if delta is None or bound is None:
        return "The plan carries this certificate."
    risk = {
        "metric": f"loses at most {bound:.4g} of the full network's {data.metric_word}",
        "agreement": f"differs from the full network's answer for at most {bound:.4g} of the queries",
    }.get(str(fields.get("risk", "metric")), f"loses at most {bound:.4g} of the full network's {fields.get('risk')}")
    holds = (
        "whatever the distribution of the queries, as long as the calibration data were drawn from it"
        if fields.get("finite_sample", True)
        else "in the limit of many samples; this is not a guarantee at a finite number of them"
    )
    return (
        f"Except with a probability of {delta:.4g} (over the draw of the calibration data), the plan {risk}: {holds}. "
        "It was tested on samples on which exits and thresholds were not tuned."
    )


def _environment_body(data: ReportData) -> str:
    lines = _pairs(dict(data.environment)) if data.environment else _paragraph("Nothing was recorded.")
    digests = {f"{name} digest": digest for name, digest in data.digests.items()}
    return lines + (_pairs(digests) if digests else "")


def _commands_body(data: ReportData) -> str:
    lines = "\n".join(data.commands)
    note = "Each command makes what is missing before it and reuses what is unchanged; times differ between machines."
    return f"{_paragraph(note)}<pre>{escape(lines)}</pre>"
