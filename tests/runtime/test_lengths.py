"""Rows of several lengths: a batch runs at the smallest length that holds it, and no answer shows how it was padded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, InputError, SequenceSpec, TensorSpec, read_json
from engines import fit_length, row_lengths
from runtime import Runtime
from tests.export.sequence_graphs import LENGTHS, draw_sequences
from tests.runtime.sequence_worlds import EXITS, MOST_ROWS, answer_alone, make_sequence_run

COUNTS = [1, 3, 4, 5, 7, 8, 9, 12, 15, 16]


@pytest.fixture(scope="module", params=[True, False], ids=["one shape for all layers", "a shape per layer"])
def sequence(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_sequence_run(tmp_path_factory.mktemp("sequence"), shared=request.param)


def test_every_row_is_answered_as_alone_whatever_its_padding_and_neighbours(sequence: Any) -> None:
    rows = draw_sequences(COUNTS * 3, seed=3)
    expected = answer_alone(sequence.model, rows, sequence.thresholds)
    assert {exit_ for exit_, _ in expected} == {0, 1, 2}
    order = np.random.default_rng(0)
    with Runtime.load(sequence.bundle) as runtime:
        for size in (1, 2, 3, MOST_ROWS):
            chosen = order.permutation(len(expected))
            for start in range(0, len(chosen), size):
                places = chosen[start : start + size]
                longest = int(rows["attention_mask"][places].sum(axis=1).max())
                for columns in {longest, LENGTHS[-1], LENGTHS[-1] + 5, min(longest + 1, LENGTHS[-1])}:
                    batch = pad_with_garbage(rows, places, columns)
                    result = runtime.run(batch)
                    for place, found, exit_ in zip(places, result.outputs, result.exit_index, strict=True):
                        assert exit_ == expected[place][0]
                        np.testing.assert_allclose(found, expected[place][1], rtol=1e-4, atol=1e-5)


def pad_with_garbage(rows: dict[str, np.ndarray], places: np.ndarray, columns: int) -> dict[str, np.ndarray]:
    """Returns some rows with so many columns; what their mask hides holds any tokens."""
    ids, mask = (np.zeros((len(places), columns), np.int64) for _ in range(2))
    shared = min(columns, rows["input_ids"].shape[1])
    ids[:] = np.random.default_rng(columns).integers(0, 11, ids.shape)
    mask[:, :shared] = rows["attention_mask"][places, :shared]
    ids[:, :shared] = np.where(mask[:, :shared] > 0, rows["input_ids"][places, :shared], ids[:, :shared])
    return {"input_ids": ids, "attention_mask": mask}


def test_a_large_batch_runs_in_parts_each_at_its_own_length(sequence: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw_sequences([2] * MOST_ROWS + [16] + [6] * 3, seed=4)
    seen = []

    def watch(arrays: Any, inputs: Any, sequence: SequenceSpec) -> Any:
        fitted = fit_length(arrays, inputs, sequence)
        seen.append(fitted[0].shape)
        return fitted

    monkeypatch.setattr("runtime.runtime.fit_length", watch)
    expected = answer_alone(sequence.model, rows, sequence.thresholds)
    with Runtime.load(sequence.bundle) as runtime:
        result = runtime.run(rows)
        streamed = np.zeros_like(result.outputs)
        for places, outputs in runtime.stream(rows):
            streamed[places] = outputs
    assert seen == [(MOST_ROWS, 4), (4, 16)] * 2
    np.testing.assert_array_equal(streamed, result.outputs)
    np.testing.assert_allclose(result.outputs, [answer for _, answer in expected], rtol=1e-4, atol=1e-5)


def test_statistics_and_shadowing_go_on(sequence: Any) -> None:
    with Runtime.load(sequence.bundle, shadow_fraction=0.5, shadow_seed=0, drift=None) as runtime:
        for seed in range(6):
            runtime.run(draw_sequences(COUNTS[seed : seed + 4], seed=seed))
        stats = runtime.stats()
    assert sum(exit_.count for exit_ in stats.exits) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: draw_sequences([17, 3, 40]), r"rows 0, 2 are up to 40 long, .* up to 16. .* --lengths 4,8,16,40"),
        (lambda rows: {**rows, "attention_mask": rows["attention_mask"] * [[1], [0]]}, "every position of rows 1"),
        (
            lambda rows: {**rows, "input_ids": rows["input_ids"][:, :3]},
            "lengths 3 of 'input_ids', 4 of 'attention_mask'",
        ),
        (lambda rows: {name: array[:, :0] for name, array in rows.items()}, "lengths 0 of 'input_ids'"),
        (lambda rows: {**rows, "input_ids": rows["input_ids"][0]}, r"expected shape \(B, L\), got \(4,\)"),
        (lambda rows: {**rows, "input_ids": rows["input_ids"].astype(np.int32)}, "expected int64, got int32"),
        (lambda rows: rows["input_ids"], "takes 2 inputs"),
    ],
)
def test_what_cannot_be_run_is_refused(sequence: Any, change: Any, message: str) -> None:
    with Runtime.load(sequence.bundle) as runtime:
        with pytest.raises(InputError, match=message):
            runtime.run(change(draw_sequences([4, 2])))
        assert len(runtime.run(draw_sequences([4, 2])).outputs) == 2


def test_the_bundle_says_its_lengths(sequence: Any) -> None:
    plain = read_json(sequence.bundle / BUNDLE_JSON, dict)
    assert plain["sequence"] == {"lengths": list(LENGTHS), "mask": "attention_mask"}
    assert plain["stages"][0]["shorter_ms"]["4"].keys() == plain["stages"][0]["median_ms"].keys()
    with Runtime.load(sequence.bundle) as runtime:
        assert runtime.spec.lengths == LENGTHS
        assert [exit_.cut for exit_ in runtime.spec.plan.exits] == list(EXITS)


def test_the_length_of_a_row_ends_with_the_last_position_of_its_mask() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert row_lengths(mask).tolist() == [2, 4, 0, 4, 3]


def test_a_batch_of_the_right_length_is_not_copied() -> None:
    inputs = [
        TensorSpec(name="ids", dtype="int64", row_shape=(8,), length_axes=(0,)),
        TensorSpec(name="mask", dtype="int64", row_shape=(8,), length_axes=(0,)),
        TensorSpec(name="kind", dtype="int64", row_shape=()),
    ]
    sequence = SequenceSpec(lengths=(4, 8), mask="mask")
    ids, mask, kind = np.arange(16).reshape(2, 8), np.ones((2, 8), np.int64), np.arange(2)
    assert all(map(lambda a, b: a is b, fit_length((ids, mask, kind), inputs, sequence), (ids, mask, kind)))
    mask[:, 3:] = 0
    short = fit_length((ids, mask, kind), inputs, sequence)
    assert [array.shape for array in short] == [(2, 4), (2, 4), (2,)]
    assert np.shares_memory(short[0], ids)
