"""Arrivals: when requests come, by a random process or by a recorded trace, at any mean rate.

The same seed gives the same randomness at every rate, so that rates are compared with common random numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from artifacts import InputError, unknown_name

_HERE = Path(__file__).parent
TRACES = {
    "azure-code": _HERE / "azure_llm_2023_code_gaps_s.npy",
    "azure-conv": _HERE / "azure_llm_2023_conv_gaps_s.npy",
}
ARRIVALS = ("poisson", "mmpp", *TRACES)
_BURST_SHARE, _LULL_SHARE = 1.6, 0.4  # of the mean rate: four to one
_DWELL_S = 0.5  # mean time in a burst, and in a lull


def make_arrivals(kind: str, count: int, rate_per_s: float, seed: int) -> np.ndarray:
    """Returns (count,) float64 seconds, ascending, at which requests come.

    Args:
        kind: ``poisson``; ``mmpp``: Poisson whose rate changes, on average every half second, between 1.6 and 0.4 of
            the mean; ``azure-code`` (extreme bursts), ``azure-conv`` (nearly Poisson): real requests to language models
            in 2023, with the time axis scaled; or a ``.npy`` file of gaps in seconds, scaled as well.
        count: how many.
        rate_per_s: their mean rate.
        seed: of the random processes, and of where a trace begins.

    Raises:
        UsageError: there is no such process.
        InputError: a file holds no gaps, or cannot be read.
    """
    random = np.random.default_rng(seed)
    if kind == "poisson":
        times: np.ndarray = np.cumsum(random.standard_exponential(count)) / rate_per_s
        return times
    if kind == "mmpp":
        return _modulated(count, rate_per_s, random)
    gaps = _read_gaps(TRACES[kind] if kind in TRACES else Path(kind))
    start = int(random.integers(len(gaps)))
    repeated = np.resize(np.roll(gaps, -start), count)
    scaled: np.ndarray = np.cumsum(repeated) / (rate_per_s * gaps.mean())
    return scaled


def _modulated(count: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
    """Stretches a Poisson process: between changes of state, time runs at the state's rate."""
    work = np.cumsum(random.standard_exponential(count))  # a process of rate 1
    dwell_s, state, now, done = [], 0, [0.0], [0.0]
    while done[-1] < work[-1]:
        dwell_s.append(float(random.exponential(_DWELL_S)))
        rate = rate_per_s * (_BURST_SHARE, _LULL_SHARE)[state]
        now.append(now[-1] + dwell_s[-1])
        done.append(done[-1] + rate * dwell_s[-1])
        state = 1 - state
    times: np.ndarray = np.interp(work, done, now)
    return times


def _read_gaps(path: Path) -> np.ndarray:
    if not path.is_file():
        if path.suffix == ".npy":
            raise InputError(f"there is no file {path} of gaps between requests")
        raise unknown_name("arrival process", str(path), ARRIVALS)
    try:
        gaps = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no array of numpy: {error}. Write it with np.save(path, gaps_in_seconds)"
        ) from error
    if not isinstance(gaps, np.ndarray) or gaps.ndim != 1 or gaps.dtype.kind not in "fiu" or not len(gaps):
        raise InputError(f"{path}: expected one axis of gaps in seconds")
    wide = gaps.astype(np.float64)
    if not np.isfinite(wide).all() or wide.min() < 0 or wide.mean() <= 0:
        raise InputError(f"{path}: gaps are seconds from 0, and not all 0")
    return wide
