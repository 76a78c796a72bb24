"""The status page at ``/``: models, where their rows leave, load and drift, as plain HTML with a drawing in SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from runtime.monitor.stats import RuntimeStats
from runtime.serve.models import READY, ServedModel
from runtime.serve.service import SERVER, InferenceService

_REFRESH_S = 2
_WIDTH, _BAR, _GAP, _LABEL = 560, 18, 8, 170
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 46rem; padding: 0 1rem; color: #1d2733;
  background: #fff } h1, h2 { font-weight: 600 } h2 { margin: 2rem 0 .3rem } table { border-collapse: collapse }
td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; font-variant-numeric: tabular-nums }
th { font-weight: 400; color: #5b6b7c } .good { color: #1a7f4b } .bad { color: #b3261e; font-weight: 600 }
svg text { font: 13px system-ui, sans-serif; fill: currentColor }
@media (prefers-color-scheme: dark) { body { background: #12171d; color: #dfe6ee } th { color: #93a3b5 } }
"""


def render_status(service: InferenceService) -> str:
    """Returns the page, as things are now."""
    state = "on its way out" if service.draining else "ready" if service.ready else "not ready"
    body = "".join(_model_section(model) for model in service.models.values())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{SERVER}</title>'
        f'<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="{_REFRESH_S}">'
        f"<style>{_STYLE}</style></head><body><h1>{SERVER} <small>{_word(state, good=state == 'ready')}</small></h1>"
        f"{body or '<p>No model is loaded.</p>'}</body></html>"
    )


def _model_section(model: ServedModel) -> str:
    title = f"<h2>{escape(model.name)} {_word(model.state.lower(), good=model.ready)}</h2>"
    if model.state != READY:
        return title + f"<p>{escape(model.reason)}</p>"
    stats = model.host.stats_or_none()
    chart = "" if stats is None else _exit_chart(stats)
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in _facts(model, stats))
    return f"{title}{chart}<table>{rows}</table>"


def _facts(model: ServedModel, stats: RuntimeStats | None) -> Iterator[tuple[str, str]]:
    spec, snapshot, counted = model.host.spec, model.host.snapshot(), model.statistics
    now = snapshot.scheduling
    yield "bundle", escape(f"{spec.name}, {spec.backend}, batches up to {spec.max_batch_size}")
    yield "policy", escape(snapshot.policy) + (", stages are shared now" if now.pooling else "")
    yield "requests answered", f"{counted.success.count:,} ({counted.rows:,} rows)"
    if counted.failures:
        yield "not answered", escape(", ".join(f"{reason} {count:,}" for reason, count in counted.failures.items()))
    if counted.success.count:
        yield "mean time in the server", f"{counted.success.ns / counted.success.count / 1e6:.2f} ms"
    yield "rows offered", f"{now.offered_rows_per_s:,.0f} per second"
    yield "rows waiting, per stage", " ".join(map(str, now.waiting_rows))
    yield "predicted wait", f"{now.wait_s * 1e3:.1f} ms"
    fills = [f"{stage.rows / stage.runs:.1f}" if stage.runs else "-" for stage in snapshot.stages]
    yield "rows per run, per stage", " ".join(fills)
    if snapshot.stuck is not None:
        yield "device", _word(escape(snapshot.stuck), good=False)
    if stats is None or stats.drift is None:
        yield "drift", "not tested"
    elif stats.alarm is not None:
        yield "drift", _word(escape(stats.alarm.message), good=False)
    else:
        yield "drift", _word("no alarm", good=True)
    if stats is not None and stats.response is not None:
        yield "thresholds", _word(stats.response.mode, good=stats.response.mode == "planned")


def _exit_chart(stats: RuntimeStats) -> str:
    """Returns a bar per exit: the share of rows that left there, with a mark at the share that the plan expects."""
    room = _WIDTH - _LABEL - 60
    height = len(stats.exits) * (_BAR + _GAP)
    parts: Sequence[str] = [
        f'<text x="0" y="{top + 14}">{escape(exit_.name[-24:])}</text>'
        f'<rect x="{_LABEL}" y="{top}" width="{exit_.share * room:.1f}" height="{_BAR}" fill="#2f6fb0"/>'
        f'<path d="M{_LABEL + exit_.expected_share * room:.1f} {top - 2}v{_BAR + 4}" stroke="#d9822b"/>'
        f'<text x="{_LABEL + exit_.share * room + 8:.1f}" y="{top + 14}">{exit_.share:.1%}</text>'
        for top, exit_ in ((2 + place * (_BAR + _GAP), exit_) for place, exit_ in enumerate(stats.exits))
    ]
    label = "Share of rows that left at each exit; the mark is the share that the exit plan expects"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height + 4}" width="{_WIDTH}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(parts)}</svg>"
    )


def _word(text: str, *, good: bool) -> str:
    return f'<span class="{"good" if good else "bad"}">{text}</span>'
