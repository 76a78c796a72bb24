"""Contenders over fakes: several inputs, a task of one's own, and no answers in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from artifacts import GraphSpec
from engines import FakeEngine, HostDevice
from runtime import OpenBundle
from runtime.bench.contenders import Contenders, ExitAnswers
from runtime.bench.figures import describe_exits
from runtime.bench.grading import Grader, Grades
from runtime.bench.queries import Queries
from tests.runtime.task_worlds import CloseAnswers

SAMPLES, BATCH = 21, 8


class TwoInputs:
    """Samples with two inputs, and numbers as targets."""

    name = "two inputs"
    labelled = True

    def __init__(self, net: Any) -> None:
        random = np.random.default_rng(3)
        self.x, self.mask = net.batch(random.random((SAMPLES, net.depth)), mask=random.random((SAMPLES, 2)) < 0.5)
        self.labels = random.random(SAMPLES) * 10

    def indices_of(self, part: str) -> np.ndarray:
        return np.arange(SAMPLES)

    def inputs(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"mask": self.mask[rows], "x": self.x[rows]}

    def targets(self, rows: np.ndarray) -> np.ndarray:
        return self.labels[rows]


@pytest.fixture
def net(fake_net: Any) -> Any:
    return fake_net(thresholds=(0.5, 0.6), max_batch_size=BATCH, task="numbers")


def open_fakes(net: Any) -> OpenBundle:
    unread: Any = None
    return OpenBundle(artifact=unread, spec=net.spec(), engine_sets=tuple(net.engine_sets()), device=HostDevice())


def whole_network(net: Any) -> FakeEngine:
    graph = GraphSpec(
        name="full", file="", inputs=net.inputs, outputs=net.graph(0).outputs[-2:], confidence="confidence",
        answers=("answer",),
    )  # fmt: skip
    return FakeEngine(graph, max_batch_size=BATCH, outputs=lambda values: {**answer_all(net, values, net.depth - 1)})


def answer_all(net: Any, values: Mapping[str, np.ndarray], index: int) -> Mapping[str, np.ndarray]:
    """Returns the answers of one exit to every row, whatever its confidence before."""
    alone = type(net)(thresholds=(2.0,) * index, check_finite=False)
    alone_depth = alone.depth
    rows = []
    for x, mask in zip(values["x"], values["mask"], strict=True):
        main, skip = {"x": x[None], "mask": mask[None]}, None
        for stage in range(net.depth):
            if stage == net.depth - 1 and skip is not None:
                main["skip"] = skip
            made = net.compute(stage)(main)
            skip = made["skip"] if stage == 0 else skip
            if stage == alone_depth - 1:
                rows.append((made["answer"][0], made["confidence"][0]))
                break
            main[f"h{stage + 1}"] = made[f"h{stage + 1}"]
    return {"answer": np.stack([answer for answer, _ in rows]), "confidence": np.array([value for _, value in rows])}


def test_a_network_with_several_inputs_and_a_task_of_its_own(net: Any) -> None:
    data: Any = TwoInputs(net)
    queries = Queries(data, batch_size=BATCH, count=None, seed=0)
    assert (len(queries), queries.batch_count) == (SAMPLES, 3)
    with Contenders(open_fakes(net), whole_network(net), batch_size=BATCH) as contenders:
        recording = contenders.record(queries, CloseAnswers(), range(2))
    x, mask, labels = data.x[queries.rows], data.mask[queries.rows], data.labels[queries.rows]
    by_exit = [answer_all(net, {"x": x, "mask": mask}, index)["answer"] for index in range(3)]
    alone = [net.answer_row(x[row], mask[row]) for row in range(SAMPLES)]
    early, task = np.stack([answer for _, _, answer in alone]), CloseAnswers()
    graded = recording.graded
    assert recording.exit_index.tolist() == [exit_index for exit_index, _, _ in alone]
    assert len(set(recording.exit_index.tolist())) == 3
    np.testing.assert_array_equal(graded.agreement, task.agreement([early], [by_exit[2]]))
    wanted = [task.agreement([by_exit[index]], [by_exit[2]]) for index in range(2)]
    np.testing.assert_array_equal(graded.exit_agreement, wanted)
    assert 0 < graded.exit_agreement.mean() < 1
    for grades, answers in ((graded.full, by_exit[2]), (graded.early, early)):
        assert grades is not None
        np.testing.assert_array_equal(grades.quality, task.quality([answers], labels))
        assert grades.metric() == pytest.approx(1 - np.abs(answers[:, 0] - labels).sum() / (100 * SAMPLES))
    assert recording.full.latency_ms.shape == recording.early_exit.latency_ms.shape == (2, SAMPLES)
    assert recording.no_exit_ms.shape == recording.engine_ms.shape == (2, 3)
    assert graded.early is not None
    rows = describe_exits(
        net.spec().plan.exits, recording.exit_index, graded.early, graded.agreement, recording.early_exit.latency_ms
    )
    here = recording.exit_index == 0
    assert rows[0]["metric"] == pytest.approx(1 - np.abs(early[here, 0] - labels[here]).sum() / (100 * here.sum()))
    assert [row["exit"] for row in rows] == ["cut_0", "cut_1", "final"]


def test_an_exit_answers_every_row(net: Any) -> None:
    data = TwoInputs(net)
    batch = {"x": data.x[:BATCH], "mask": data.mask[:BATCH]}
    for index in range(2):
        (answers,) = ExitAnswers(open_fakes(net), index).run(batch)
        np.testing.assert_array_equal(answers, answer_all(net, batch, index)["answer"])


def test_grades_are_means_where_the_task_has_no_counts() -> None:
    grades = Grades(task=CloseAnswers(), quality=np.array([1, 0, 0.5, 0.5], np.float32))
    assert grades.metric() == 0.5
    assert grades.metric(np.array([True, False, True, False])) == 0.75


def test_a_bundle_without_exits_is_graded() -> None:
    grader, answers = Grader(CloseAnswers()), (np.full((3, 1), 0.5, np.float32),)
    grader.add(answers, answers, [], None)
    graded = grader.finish()
    assert graded.exit_agreement.shape == (0, 3)
    assert graded.agreement.tolist() == [1, 1, 1]
