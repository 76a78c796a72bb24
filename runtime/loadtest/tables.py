"""The tables of a load test, for people. From its JSON object alone."""

from __future__ import annotations

from typing import Any

from artifacts.console import print_table, say
from runtime.loadtest.mlperf import SERVER


def print_result(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints a table per bound."""
    for entry in result["bounds"]:
        first = entry["contenders"][0]["goodput_per_s"]
        rows = [
            (
                found["policy"], f"{found['goodput_per_s']:.0f}",
                f"{found['goodput_per_s'] / first:.2f}" if first else "-", _show(found, "simulated_per_s", ".0f"),
                _show(found, "mean_latency_ms", ".2f"), _show(found, "p99_ms", ".2f"), _show_spread(found),
                _show(found, "metric", ".4f"), _show(found, "agreement", ".4f"), *_show_loadgen(found),
            )
            for found in entry["contenders"]
        ]  # fmt: skip
        title = (
            f"{result['model']}, {result['arrivals']} arrivals: the highest rate at which 99 % are answered within "
            f"{entry['slo_ms']:g} ms (measured; of {result['repeats']} streams of {result['seconds']:g} s, the median)"
        )
        columns = [
            "policy", "requests/s", "ratio", "simulated", "mean, ms", "p99, ms", "of streams", "metric", "agreement",
        ]  # fmt: skip
        if "mlperf" in entry["contenders"][0]:
            columns += ["LoadGen Server", "LoadGen Offline"]
        print_table(title, columns, rows, to_stderr=to_stderr)
        streams, still, slow = (
            sum(found[name] for found in entry["contenders"]) for name in ("streams", "stood_still", "slow_runs")
        )
        for found in entry["contenders"]:
            if not found["converged"]:
                say(f"{found['policy']}: {_unsettled(found)}")
        if slow:
            say(
                f"the machine stood still in {still} of {streams} streams: {slow} engine runs took more than three "
                "times what they should"
            )


def _unsettled(found: dict[str, Any]) -> str:
    """Returns what is known of a goodput whose search has not converged."""
    low, high = found["goodput_per_s"], found["limit_per_s"]
    if high is None:
        known = f"it is {low:.0f}/s at least" if low else "nothing is known"
    else:
        known = f"it lies between {low:.0f} and {high:.0f}/s" if low else f"it lies below {high:.0f}/s"
    if found["given_up"]:
        return f"no rate keeps the bound: {known}. The bound is too short for this host, or the machine is too busy"
    return f"the goodput is not settled after {found['streams']} streams: {known}; give it more with --steps"


def _show(found: dict[str, Any], name: str, form: str) -> str:
    value = found.get(name)
    return "-" if value is None else format(value, form)


def _show_spread(found: dict[str, Any]) -> str:
    """Returns the range of the streams' p99 at the highest rate."""
    if "streams_p99_ms" not in found:
        return "-"
    low, high = found["streams_p99_ms"][0], found["streams_p99_ms"][-1]
    return f"{low:.1f} to {'-' if high is None else f'{high:.1f}'}"


def _show_loadgen(found: dict[str, Any]) -> list[str]:
    shown = []
    for run in found.get("mlperf", []):
        rate = run.get("completed_per_s") if run["scenario"] == SERVER else run.get("samples_per_s")
        shown.append(f"{'-' if rate is None else f'{rate:.0f}/s'}, {'VALID' if run['valid'] else 'INVALID'}")
    return shown
