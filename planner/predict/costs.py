"""Costs of a plan: from measured engine times to the expected latency of a query.

Theory. A plan with exits ``1..K`` has ``K + 1`` stages. Stage ``j`` runs over the ``N_(j-1)`` rows that survived the
exits before it (``N_0 = B``) and takes ``c_j(N_(j-1))`` milliseconds, ``c_j(0) = 0``. Every row that enters a stage
waits for all of it, so for one batch

    sum of all query latencies = sum_j N_(j-1) * c_j(N_(j-1)),        batch time = sum_j c_j(N_(j-1)).

Batches drawn at random have N_k ~ Binomial(B, s_k) (see ``planner.predict.survivors``), and by the size-biasing
identity E[N c(N)] = B s E[c(1 + Binomial(B - 1, s))] the expected mean latency is

    E[mean] = (1/B) sum_j E[N_(j-1) c_j(N_(j-1))] = sum_j s_(j-1) t_j,      t_j = E[c_j(1 + Binomial(B - 1, s_(j-1)))],

where ``t_j`` is the time of stage ``j`` as a query sees it that takes part in it; a query that leaves at exit ``k``
waits ``t_1 + .. + t_k`` on average, its *arrival time*. All of this is exact: no Monte Carlo, no smoothing of
``c_j``.

With batches of several sizes (``planner.predict.traffic``) the mean latency is the query-weighted mixture of these,
the batch time the mixture by the share of the batches. The 99th percentile comes from
``planner.predict.percentiles``, as exact.

``c_j`` comes from the inference time matrix. Where the stage itself was timed, that row is it. Before that, a stage
is the sum of its segments, its head and the gather behind it, less what merging saves: separate engines pay a start
each and hand their tensors over through memory. The ``J = number of cuts`` *seams* between the segments of the whole
network save

    sum of all segments + final head - full

together, and each seam is credited with an equal part, so that the stage without exits costs exactly what the full
network was measured to take. At an exit half of a seam stays: the cut's tensors are read by the head where they are,
but still written for the next stage, which reads them. A seam is the small difference of large sums, which carries the
noise of all rows: the cost of a batch of which no row leaves is therefore worked out without seams, as the full network
and the heads and gathers of the exits. That is a little less than it takes; ``planner.commit.committing`` measures it.

A row of measurements becomes ``c_j(n)`` for every ``n`` by ``engines.plan_covers``: the
cheapest set of engine runs for ``n`` rows (exact fit, padding or split), as the runtime chooses it. The gather behind a
stage comes on top, and on top of the first stage what serving a batch takes besides its engines
(``planner.measure.host_overhead``).

Two decisions at run time were worked out and left out (``docs/adr/0008-joint-search.md``). *Carrying leavers along*
where the next cover costs as much with them saves the gather and nothing else. Its exact value is that of a Markov
decision process over (rows alive, rows run over); ``benchmarks/carry_along.py`` solves it: at most 0.3 % of the mean
latency on the demo network's times, 4 % if there were engines for the full batch alone. *Skipping a head* when few
rows are left would send a row that is confident enough past its exit because of the other rows of its batch: its answer
would depend on its neighbours, so it may not be done however much it saves. The head of an exit that seldom pays is
left out by the search, for every batch alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from artifacts import FINAL_HEAD_GRAPH, InferenceTimeMatrix, UsageError, unknown_name
from calibration import binomial_pmf
from engines import plan_covers
from planner.predict.lengths import LengthCosts, LengthMix, Part, average_costs, stay_by_length
from planner.predict.percentiles import TAIL_QUANTILE, find_quantile, latency_distribution, latency_quantile
from planner.predict.traffic import Load

FULL = "full"
SERVING = "serving"
_NOBODY = 1e-9  # a share of the queries
END = "end"  # the last cut of an imported network, where the final head sits


def segment_row(index: int) -> str:
    """Returns the matrix row of a segment."""
    return f"segment_{index:02d}"


def head_row(cut: str) -> str:
    """Returns the matrix row of an exit head."""
    return f"exit_{cut}"


def gather_row(cut: str) -> str:
    """Returns the matrix row of the gather behind an exit."""
    return f"gather_{cut}"


def stage_row(after: str | None, until: str | None) -> str:
    """Returns the matrix row of a merged stage."""
    return f"stage_{after or 'input'}..{until or 'output'}"


def price_stage(
    engine_ms: Sequence[float], host_ms: Sequence[float], itm: InferenceTimeMatrix, *, batch_size: int
) -> np.ndarray:
    """Returns the cost of a stage for 0..batch_size rows: (B + 1,) float64 milliseconds, as the runtime runs it.

    Args:
        engine_ms: time of its engine at the matrix's batch sizes.
        host_ms: time of what the host does around it, likewise; interpolated between the batch sizes.
        itm: says which batch sizes were timed and whether the engine is bound to them.
        batch_size: B.
    """
    covers = plan_covers(
        dict(zip(itm.batch_sizes, map(float, engine_ms), strict=True)), largest=batch_size, fixed=itm.fixed
    )
    cost = np.array(covers.cost_ms, np.float64)
    cost[1:] += np.interp(np.arange(1, batch_size + 1), itm.batch_sizes, host_ms)
    cost.setflags(write=False)
    return cost


def host_row(itm: InferenceTimeMatrix, after: str | None, until: str | None) -> tuple[float, ...]:
    """Returns the host's time around a stage, at the matrix's batch sizes: gather, and serving around the first."""
    rows = [np.zeros(len(itm.batch_sizes))]
    if until is not None:
        rows.append(np.array(itm.row_ms(gather_row(until))))
    if after is None and SERVING in itm.median_ms:
        rows.append(np.array(itm.row_ms(SERVING)))
    return tuple(np.sum(rows, axis=0).tolist())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkCosts:
    """Prices the stages of any choice of exits; each stage is worked out once.

    Attributes:
        itm: rows for all segments, exit heads and gathers, ``final_head`` and ``full``; ``serving`` where it was timed.
        cuts: every cut of the network in order, the last one too.
        batch_size: the largest batch that enters the network.
        mixture: the batches that enter; ``None``: all have ``batch_size`` queries.
        lengths: how long rows are; ``None``: all have one shape, or the largest length.
        reference: of the network that slow batches are compared with, where it is another than this one without exits:
            its matrix has the rows ``full`` and ``serving`` alone.
    """

    itm: InferenceTimeMatrix
    cuts: tuple[str, ...]
    batch_size: int
    mixture: Load | None = None
    lengths: LengthMix | None = None
    reference: NetworkCosts | None = None
    _views: dict[int, NetworkCosts] = field(default_factory=dict, init=False, repr=False)
    _priced: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _added: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _full_ms: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.itm.batch_sizes[-1]:
            raise UsageError(
                f"--batch-size {self.batch_size}: engines were timed for 1 to {self.itm.batch_sizes[-1]} rows; "
                "time them again with --batch-sizes"
            )
        if self.load.largest != self.batch_size:
            raise UsageError(
                f"--batch-distribution: its largest batch has {self.load.largest} queries, planned for is "
                f"{self.batch_size}; leave --batch-size out"
            )

    @property
    def load(self) -> Load:
        """The batches that enter."""
        return self.mixture or Load.of(self.batch_size)

    @property
    def full_ms(self) -> float:
        """The mean query of the whole network: its time at the full batch, or the mean over the load's batches."""
        if not self._full_ms:
            self._full_ms.append(
                price_staying(self.plan_costs(()), self.load)
                if self.lengths is None
                else stay_by_length(self._by_length(()), self.lengths, self.load)
            )
        return self._full_ms[0]

    @property
    def slow_above(self) -> NetworkCosts:
        """The costs of the network without exits that batches are compared with to tell which are slow."""
        return self.reference or self

    def stay_ms(self, exits: Sequence[str]) -> float:
        """The mean query of batches of which no row leaves before the end, with these exits, in milliseconds: the full
        network and what every exit adds, so that another exit never makes it less."""
        return self.full_ms + sum(map(self.exit_ms, exits))

    def exit_ms(self, name: str) -> float:
        """The time that an exit adds for the mean query of a batch of which no row leaves: its head and the gather."""
        if name not in self._added and self.lengths is not None:
            weights = [self.lengths.batch_shares(rows) for rows in self.load.batch_sizes]
            views = [self._at_length(length) for length in self.lengths.lengths]
            self._added[name] = float(np.dot(np.dot(self.load.query_shares, weights), [v.exit_ms(name) for v in views]))
        if name not in self._added:
            head, gather = self.itm.row_ms(head_row(name)), self.itm.row_ms(gather_row(name))
            self._added[name] = price_staying(
                [price_stage(head, gather, self.itm, batch_size=self.batch_size)], self.load
            )
        return self._added[name]

    def stage_cost(self, after: str | None, until: str | None) -> np.ndarray:
        """Returns the cost of a stage for 0..B rows: (B + 1,) float64 milliseconds, read-only.

        Args:
            after: the exit behind which it starts; ``None`` for the network's input.
            until: the exit that ends it; ``None`` for the final head.
        """
        start = 0 if after is None else self._position(after) + 1
        stop = len(self.cuts) if until is None else self._position(until) + 1
        if start >= stop and self.cuts:
            raise UsageError(f"exits must follow the data flow: '{until}' does not come after '{after}'")
        key = (start, -1 if until is None else stop)
        if key not in self._priced and self.lengths is not None:
            by_length = {length: (self._at_length(length).stage_cost(after, until),) for length in self.lengths.lengths}
            (self._priced[key],) = average_costs(LengthCosts(by_length=by_length), self.lengths, self.load)
        if key not in self._priced:
            engine, host = self._engine_row(start, stop, until), host_row(self.itm, after, until)
            self._priced[key] = price_stage(tuple(engine.tolist()), host, self.itm, batch_size=self.batch_size)
        return self._priced[key]

    def plan_costs(self, exits: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Returns the cost of every stage of a plan with these exits; ``len(exits) + 1`` arrays.

        Where rows have several lengths, it is averaged over those of the batches.
        """
        bounds = [None, *exits, None]
        return tuple(self.stage_cost(after, until) for after, until in itertools.pairwise(bounds))

    def exact_costs(self, exits: Sequence[str]) -> Sequence[np.ndarray] | LengthCosts:
        """As ``plan_costs``, but of every length by itself where rows have several."""
        return self.plan_costs(exits) if self.lengths is None else self._by_length(exits)

    def _by_length(self, exits: Sequence[str]) -> LengthCosts:
        lengths = () if self.lengths is None else self.lengths.lengths
        return LengthCosts(by_length={length: self._at_length(length).plan_costs(exits) for length in lengths})

    def _at_length(self, length: int) -> NetworkCosts:
        if length not in self._views:
            self._views[length] = replace(self, itm=self.itm.at_length(length), lengths=None)
        return self._views[length]

    def _position(self, cut: str) -> int:
        if cut not in self.cuts:
            raise unknown_name("cut", cut, self.cuts)
        return self.cuts.index(cut)

    def _engine_row(self, start: int, stop: int, until: str | None) -> np.ndarray:
        if until is None and start == 0:
            return self._row(FULL)
        total = sum((self._row(segment_row(i)) for i in range(start, stop)), np.zeros(len(self.itm.batch_sizes)))
        total = total + self._row(FINAL_HEAD_GRAPH if until is None else head_row(until))
        seam_ms = self._seam_ms()
        total = total - (stop - start) * seam_ms
        if until is not None:
            total = total + 0.5 * np.maximum(seam_ms, 0.0)  # the tensors of an exit's cut are still written
        row: np.ndarray = np.maximum(total, 0.0)
        return row

    def _seam_ms(self) -> np.ndarray:
        parts = [self._row(segment_row(i)) for i in range(len(self.cuts))] + [self._row(FINAL_HEAD_GRAPH)]
        saved: np.ndarray = (np.sum(parts, axis=0) - self._row(FULL)) / len(self.cuts)
        return saved

    def _row(self, name: str) -> np.ndarray:
        return np.array(self.itm.row_ms(name), np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTimes:
    """Expected times of a batch in milliseconds.

    Attributes:
        mean_ms: of the mean query.
        batch_ms: until the last answer.
        p99_ms: what 99 % of the queries do not exceed; ``None`` where it was not asked for.
        arrival_ms: per exit and last the final head: the mean of the queries that leave there.
    """

    mean_ms: float
    batch_ms: float
    p99_ms: float | None
    arrival_ms: tuple[float, ...]


def expect_times(
    costs: Sequence[np.ndarray], survival: Sequence[float], load: Load | None = None, *, percentile: bool = False
) -> ChainTimes:
    """Returns the expected times of batches drawn at random.

    Args:
        costs: per stage (B + 1,) milliseconds for 0..B rows.
        survival: per stage the share of all samples that enter it; starts with 1 and never rises.
        load: the batches that enter; when left out, all have B queries.
        percentile: work out the 99th percentile too, which takes longer than all else.
    """
    load = load or Load.of(len(costs[0]) - 1)
    seen, whole = _expect_stages(costs, survival, load)
    return ChainTimes(
        mean_ms=float(np.dot(survival, seen)), batch_ms=whole,
        p99_ms=latency_quantile(costs, survival, load) if percentile else None,
        arrival_ms=tuple(np.cumsum(seen).tolist()),
    )  # fmt: skip


def price_staying(costs: Sequence[np.ndarray], load: Load) -> float:
    """Returns the mean query's latency in batches of which no row leaves before the end.

    Args:
        costs: per stage (B + 1,) milliseconds for 0..B rows.
        load: the batches that enter; none above B.
    """
    return float(np.dot(load.query_shares, np.sum(costs, axis=0)[list(load.batch_sizes)]))


def expect_mean_ms(costs: Sequence[np.ndarray], survival: Sequence[float], load: Load | None = None) -> float:
    """Returns the mean latency alone; arguments as for ``expect_times``."""
    return float(np.dot(survival, _expect_stages(costs, survival, load or Load.of(len(costs[0]) - 1))[0]))


def expect_mixture(parts: Iterable[Part], load: Load, *, percentile: bool = False) -> ChainTimes:
    """Returns the expected times of a mixture, as ``planner.predict.lengths`` makes it of batches of several lengths.

    Args:
        parts: the terms; those of positive weight and the same costs come before those of negative weight.
        load: the batches that enter.
        percentile: work out the 99th percentile too.
    """
    terms = list(parts)
    stages = len(terms[0].survival)
    whole, entered, gone, waited = 0.0, np.zeros(stages), np.zeros(stages), np.zeros(stages)
    for part in terms:
        seen, batch = _expect_stages(part.costs, part.survival.tolist(), load, part.chances)
        share = float(np.dot(load.query_shares, part.chances))
        leaving = part.survival - np.append(part.survival[1:], 0.0)
        whole += batch
        entered += part.survival * seen
        gone += leaving * share
        waited += leaving * np.cumsum(seen)
    paths = (
        [latency_distribution(part.costs, part.survival.tolist(), load, part.chances) for part in terms]
        if percentile
        else []
    )
    arrival = np.where(gone > _NOBODY, waited / np.maximum(gone, _NOBODY), np.cumsum(entered))
    return ChainTimes(
        mean_ms=float(entered.sum()), batch_ms=whole,
        p99_ms=find_quantile(*map(np.concatenate, zip(*paths, strict=True))) if paths else None,
        arrival_ms=tuple(arrival.tolist()),
    )  # fmt: skip


def _expect_stages(
    costs: Sequence[np.ndarray], survival: Sequence[float], load: Load, chances: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Returns the time of each stage as its queries see it, and the time of a batch; ``chances`` weigh the load's batch
    sizes."""
    table, share = np.stack(costs), np.asarray(survival, np.float64)
    whole, seen = 0.0, np.zeros(len(table))
    weights = np.ones(len(load.batch_sizes)) if chances is None else chances
    for size, batches, queries, weight in zip(load.batch_sizes, load.shares, load.query_shares, weights, strict=True):
        whole += weight * batches * float((binomial_pmf(size, share) * table[:, : size + 1]).sum())
        seen += weight * queries * (binomial_pmf(size - 1, share) * table[:, 1 : size + 1]).sum(axis=1)
    return seen, float(whole)


def record_times(
    costs: Sequence[np.ndarray], survivors: np.ndarray, places: np.ndarray | None = None
) -> ChainTimes:  # fmt: skip
    """Returns the times of given batches: ``expect_times`` with the trace's own batches instead of random ones.

    Args:
        costs: per stage (B + 1,) milliseconds for 0..B rows; K + 1 stages. With ``places``: (lengths, B + 1).
        survivors: (batches, K) rows that go on past each exit, as from ``survivors.count_survivors``.
        places: (batches,) the place of each batch's length, where rows have several.
    """
    batch_size = costs[0].shape[-1] - 1
    entering = np.concatenate([np.full((len(survivors), 1), batch_size), survivors], axis=1)
    rows = list(entering.T)
    spent = np.stack(
        [cost[n] if places is None else cost[places, n] for cost, n in zip(costs, rows, strict=True)], axis=1
    )
    leaving = entering - np.concatenate([survivors, np.zeros((len(survivors), 1), np.int64)], axis=1)
    done, gone = np.cumsum(spent, axis=1), leaving.sum(axis=0)
    waited = (leaving * done).sum(axis=0)
    arrival = np.where(gone > 0, waited / np.maximum(gone, 1), done.mean(axis=0))
    latencies = np.repeat(done.ravel(), leaving.ravel())
    return ChainTimes(
        mean_ms=float(waited.sum() / (batch_size * len(survivors))),
        batch_ms=float(spent.sum(axis=1).mean()),
        p99_ms=float(np.quantile(latencies, TAIL_QUANTILE, method="inverted_cdf")),
        arrival_ms=tuple(arrival.tolist()),
    )
