"""Traces and times from elsewhere: the documented forms, what is wrong with others, and a plan at the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import ExitPlan, InputError, RunFolder, Trace, UsageError, open_artifact, read_json
from planner.commands.main import main
from planner.foreign.files import END, build_trace, read_times, read_trace
from planner.predict.costs import NetworkCosts
from tests.planner.planning_worlds import make_trace

EXITS, SIZES = ("early", "late"), (1, 4, 8)
SLOW = {"segment early": 1.0, "head early": 0.1, "segment late": 2.0, "head late": 0.1, "segment end": 5.0}


def write_times(path: Path, rows: dict[str, object] | None = None, sizes: tuple[object, ...] = SIZES) -> Path:
    """Times that grow with the batch; ``rows`` replaces rows by cells, or drops them with ``None``."""
    lines: dict[str, object] = {
        name: ",".join(str(ms * (0.5 + size / 8)) for size in SIZES) for name, ms in SLOW.items()
    }
    lines |= rows or {}
    text = "\n".join(f"{name},{cells}" for name, cells in lines.items() if cells is not None)
    path.write_text(f"part,{','.join(map(str, sizes))}\n{text}\n")
    return path


def arrays(samples: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    trace = make_trace(seed, exits=2, samples=samples)
    final = trace.metric[-1] > 0
    correct = np.stack([(trace.metric[0] > 0) | final, final | (trace.metric[1] > 0), final])
    return {"confidence": trace.confidence, "correct": correct, "exits": np.array(EXITS)}


def write_npz(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, **content)
    return path


def test_pixels_of_each_class_make_the_metric_of_each_image(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(1, 9, (3, 40, 4)).astype(np.float64)
    counts[..., 2:] += counts[..., :2]
    confidence = np.random.default_rng(1).random((3, 40))
    trace = build_trace({"confidence": confidence, "counts": counts})

    assert trace.metric == pytest.approx((counts[..., :2] / counts[..., 2:]).mean(axis=2), rel=1e-6)
    assert np.array_equal(trace.counts, counts)
    with pytest.raises(InputError, match="put all intersections first"):
        build_trace({"confidence": confidence, "counts": counts[..., ::-1]})
    with pytest.raises(InputError, match="2 classes"):
        build_trace({"confidence": confidence, "counts": counts[..., :3]})


def test_a_task_gives_the_metric_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times, traced = write_times(tmp_path / "t.csv"), write_npz(tmp_path / "t.npz", **arrays(500))
    words = ["--run", str(tmp_path / "run"), "--trace", str(traced), "--itm", str(times), "--task"]

    assert main(["import-trace", *words, "pose"]) == 0
    assert main(["--run", str(tmp_path / "run"), "--batch-size", "8", "--certify", "none"]) == 0
    assert main(["import-trace", *words, "posture"]) == 2

    said = capsys.readouterr()
    assert said.out.count("PCKh@0.5") >= 4  # the table of exits, and that of the plan
    assert "--task pose" in (tmp_path / "run/trace/manifest.json").read_text()
    assert "unknown task 'posture'" in said.err


def as_csv(path: Path, found: dict[str, np.ndarray], what: str = "correct", label: bool = False) -> Path:
    names = [*EXITS, "final"]
    header = [
        "sample",
        *(f"confidence {n}" for n in names),
        *(f"{what} {n}" for n in names),
        *(["label"] if label else []),
    ]
    values = found["correct" if what == "correct" else "predictions"]
    rows = []
    for i in range(found["confidence"].shape[1]):
        row = [i, *found["confidence"][:, i].tolist(), *(int(v) for v in values[:, i])]
        rows.append([*row, int(found["labels"][i])] if label else row)
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def test_confidence_and_correctness(tmp_path: Path) -> None:
    found = arrays(50)
    imported = read_trace(write_npz(tmp_path / "a.npz", **found))
    again = read_trace(as_csv(tmp_path / "a.csv", found))
    for trace in (imported, again):
        assert trace.labelled
        assert trace.exits == EXITS
        np.testing.assert_array_equal(trace.confidence, found["confidence"])
        np.testing.assert_array_equal(trace.metric, found["correct"])
        np.testing.assert_array_equal(trace.agreement[:-1], found["correct"][:-1] & found["correct"][-1])
        assert trace.agreement[-1].all()


def test_logits_with_and_without_labels() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 3, (3, 40, 5)), random.integers(0, 5, 40)
    found = build_trace({"logits": logits, "labels": labels})
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found.confidence, shares.max(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(found.metric, logits.argmax(axis=2) == labels)
    np.testing.assert_array_equal(found.agreement, logits.argmax(axis=2) == logits[-1].argmax(axis=1))
    assert found.exits == ("exit_1", "exit_2")
    assert found.labels is not None
    blind = build_trace({"logits": logits})
    assert not blind.labelled
    np.testing.assert_array_equal(blind.metric, found.agreement)


def test_predictions_and_labels_in_a_csv(tmp_path: Path) -> None:
    found = arrays(30)
    found["predictions"] = np.random.default_rng(0).integers(0, 3, (3, 30))
    found["labels"] = np.random.default_rng(1).integers(0, 3, 30)
    imported = read_trace(as_csv(tmp_path / "a.csv", found, "prediction", label=True))
    np.testing.assert_array_equal(imported.metric, found["predictions"] == found["labels"])
    np.testing.assert_array_equal(imported.predictions, found["predictions"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": np.full((3, 9), np.nan)}, "confidence must be finite"),
        ({"confidence": np.full((3, 9), 2.0)}, "within .0, 1.*found 2 to 2"),
        ({"correct": np.full((3, 9), 1.5)}, "correct must be finite"),
        ({"correct": np.ones((2, 9))}, "correct has shape"),
        ({"confidence": np.ones((1, 9))}, "one row per exit"),
        ({"confidence": np.ones((3, 0)), "correct": np.ones((3, 0))}, "samples"),
        ({"exits": np.array(["a"])}, "expected 2 names"),
        ({"exits": np.array(["a", "a"])}, "names of their own"),
        ({"exits": np.array(["a", "final"])}, "none 'final'"),
        ({"correct": None}, "does not say what an exit answers"),
        ({"confidence": None}, "neither logits nor confidence"),
        ({"logits": np.full((3, 9, 2), np.inf)}, "logits: expected finite"),
    ],
)
def test_arrays_that_are_not_a_trace_are_refused(change: dict[str, np.ndarray | None], message: str) -> None:
    good = {"confidence": np.full((3, 9), 0.5), "correct": np.ones((3, 9)), "exits": np.array(EXITS)}
    with pytest.raises(InputError, match=message):
        build_trace({name: array for name, array in {**good, **change}.items() if array is not None})


def test_files_that_are_not_a_trace_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_trace(tmp_path / "none.npz")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"\.npz or a \.csv"):
        read_trace(tmp_path / "a.txt")
    with pytest.raises(InputError, match="unknown arrays"):
        read_trace(write_npz(tmp_path / "b.npz", confidences=np.ones(3)))
    for text, message in (
        ("confidence early\n0.5\n", "confidence final"),
        ("confidence early,confidence final,colour\n1,1,1\n", "column 'colour'"),
        ("confidence early,confidence final,correct final\n1,1,1\n", "columns 'correct'"),
        ("confidence early,confidence final\n1,many\n", "line 2: 'many' is not a number"),
        ("confidence early,confidence final\n1\n", "line 2: 1 cells"),
        ("confidence early,confidence early\n1,1\n", "appears twice"),
        ("confidence early\n", "at least one row"),
    ):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_trace(tmp_path / "c.csv")


def test_classes_that_are_written_or_counted_in_two_ways_are_refused() -> None:
    labels = np.arange(30) % 3
    words, confidence = np.array(["cat", "dog", "hen"]), np.full((2, 30), 0.5)
    predictions = np.stack([labels, labels])
    said = {"confidence": confidence, "predictions": words[predictions]}
    spaced = build_trace({**said, "labels": np.char.add(words, " ")[labels]})
    assert spaced.metric.all(), "a space at the end means nothing"
    with pytest.raises(InputError, match="write classes alike in both"):
        build_trace({**said, "labels": np.char.upper(words)[labels]})
    with pytest.raises(InputError, match=r"most labels \(100.0%\) are the last exit's prediction and \+1"):
        build_trace({**said, "predictions": predictions, "labels": labels + 1})


def test_truth_as_spreadsheets_write_it(tmp_path: Path) -> None:
    heads = "confidence exit_1,confidence final,correct exit_1,correct final"
    (tmp_path / "t.csv").write_text(heads + "\n0.5,0.9,False,TRUE\n0.6,0.9,true,True\n")
    assert read_trace(tmp_path / "t.csv").metric.tolist() == [[0, 1], [1, 1]]


def test_answers_may_be_words(tmp_path: Path) -> None:
    predictions, labels = np.array([[0, 1, 2, 1], [0, 2, 2, 1]]), np.array([0, 2, 1, 1])
    words, confidence = np.array(["cat", "dog", "hen"]), np.full((2, 4), 0.5)
    numbers = build_trace({"confidence": confidence, "predictions": predictions, "labels": labels})
    path = write_npz(tmp_path / "w.npz", confidence=confidence, predictions=words[predictions], labels=words[labels])
    assert np.array_equal(read_trace(path).metric, numbers.metric)
    assert np.array_equal(read_trace(path).agreement, numbers.agreement)
    with pytest.raises(InputError, match="holds words, the other numbers"):
        build_trace({"confidence": confidence, "predictions": words[predictions], "labels": labels})
    rows = [f"0.5,{words[a]},0.5,{words[b]},{words[c]}" for a, b, c in zip(*predictions, labels, strict=True)]
    header = "confidence early,prediction early,confidence final,prediction final,label"
    (tmp_path / "w.csv").write_text("\n".join([header, *rows]) + "\n")
    assert np.array_equal(read_trace(tmp_path / "w.csv").metric, numbers.metric)


def test_tables_of_countries_with_decimal_commas(tmp_path: Path) -> None:
    found = arrays(30)
    plain = as_csv(tmp_path / "plain.csv", found)
    local = plain.read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "local.csv").write_text(local)
    assert np.array_equal(read_trace(tmp_path / "local.csv").confidence, read_trace(plain).confidence)
    times = write_times(tmp_path / "times.csv")
    (tmp_path / "local_times.csv").write_text(times.read_text().replace(",", ";").replace(".", ","))
    assert read_times(tmp_path / "local_times.csv", EXITS).median_ms == read_times(times, EXITS).median_ms


def test_shares_of_agreement_stay_shares() -> None:
    """A third of the pixels is not an agreement."""
    shares = np.array([[0.3, 1.0, 0.0], [1.0, 1.0, 1.0]])
    trace = build_trace({"confidence": np.full((2, 3), 0.5), "correct": shares, "agreement": shares})
    np.testing.assert_allclose(trace.agreement, shares)
    assert trace.agrees.tolist() == [[False, True, False], [True, True, True]]


def test_times_become_the_costs_that_they_are(tmp_path: Path) -> None:
    itm = read_times(write_times(tmp_path / "t.csv", {"gather late": "0.1,0.2,0.3"}), EXITS)
    costs = NetworkCosts(itm=itm, cuts=(*EXITS, END), batch_size=8)
    assert costs.stage_cost(None, None)[8] == pytest.approx(8 * 1.5)
    assert costs.stage_cost(None, "late")[8] == pytest.approx((1 + 2 + 0.1) * 1.5 + 0.3)
    assert costs.stage_cost("late", None)[4] == pytest.approx(5.0)
    faster = read_times(write_times(tmp_path / "t.csv", {"full": "3,5,9"}), EXITS)
    assert NetworkCosts(itm=faster, cuts=(*EXITS, END), batch_size=8).full_ms == 9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"segment late": None}, r"rows \['segment late'\] are missing"),
        ({"segment middle": "1,2,3"}, r"rows \['segment middle'\] are unknown"),
        ({"head late": "1,,3"}, "row 'head late' at batch size 4 holds ''"),
        ({"head late": "1,nan,3"}, "which is not a time"),
        ({"head late": "1,-2,3"}, "which is not a time"),
        ({"head late": "1,2"}, "3 cells, the headings are 4"),
    ],
)
def test_times_with_holes_are_refused(rows: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_times(write_times(tmp_path / "t.csv", rows), EXITS)


def test_exits_in_another_order_than_the_segments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="order of the data flow"):
        read_times(write_times(tmp_path / "t.csv"), EXITS[::-1])


@pytest.mark.parametrize("sizes", [(1, 8, 4), (0, 4, 8), (1, "four", 8)])
def test_wrong_batch_sizes_are_refused(sizes: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch size"):
        read_times(write_times(tmp_path / "t.csv", sizes=sizes), EXITS)


def run_import(tmp_path: Path, **content: np.ndarray) -> RunFolder:
    run = RunFolder(root=tmp_path / "other")
    trace = write_npz(tmp_path / "trace.npz", **(content or arrays()))
    words = [
        "import-trace",
        "--run",
        str(run.root),
        "--trace",
        str(trace),
        "--itm",
        str(write_times(tmp_path / "t.csv")),
    ]
    assert main(words) == 0
    return run


def command(run: RunFolder, tmp_path: Path, *words: str) -> tuple[int, dict]:
    target = tmp_path / "result.json"
    target.unlink(missing_ok=True)
    first = words[:1] if words and not words[0].startswith("-") else ()
    code = main([*first, "--run", str(run.root), "--json", str(target), "--batch-size", "8", *words[len(first) :]])
    return code, json.loads(target.read_text()) if target.exists() else {}


def test_an_imported_run_is_planned_and_certified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_import(tmp_path)
    assert "plan with: python -m planner --run" in capsys.readouterr().out
    files = f"--trace {tmp_path / 'trace.npz'} --itm {tmp_path / 't.csv'}"
    assert run.remedy("calibration") == f"python -m planner import-trace --run {run.root} {files}"
    code, found = command(run, tmp_path, "--tolerance", "0.1", "--stay-allowance", "9", "--tail-share", "0")
    assert (code, found["bundle"]) == (0, None)
    assert found["plan"]["exits"]
    assert found["plan"]["certificate"]["bound"] == 0.1
    assert "no model to bundle" in capsys.readouterr().out
    plan = read_json(open_artifact(run.plan, kind="plan", remedy="").path("exit_plan.json"), ExitPlan)
    assert (plan.backend, plan.model_digest) == ("imported", "")
    recorded = run.remedy("planner")
    assert recorded.startswith(f"python -m planner --run {run.root} --tolerance 0.1 --batch-size 8 --threads ")
    assert recorded.endswith("--tail-share 0.0 --stay-allowance 9.0")
    code, again = command(run, tmp_path, "--tolerance", "0.1", "--stay-allowance", "9", "--tail-share", "0")
    assert (code, again["reused"]) == (0, True)


def test_without_labels_only_agreement_can_be_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (3, 500, 4))
    logits[:2] += 2 * logits[2]
    run = run_import(tmp_path, logits=logits, exits=np.array(EXITS))
    assert "--risk agreement" in capsys.readouterr().out
    code, _ = command(run, tmp_path, "--tolerance", "0.2")
    assert code == 2
    assert "--risk agreement" in capsys.readouterr().err
    assert command(run, tmp_path, "validate", "--resplits", "2")[0] == 2
    code, found = command(run, tmp_path, "--tolerance", "0.2", "--risk", "agreement")
    assert (code, found["plan"]["full_metric"]) == (0, 1)


def test_damaged_files_of_an_imported_run_are_imported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_import(tmp_path)
    (run.itm / "itm.json").write_text("{}")
    assert command(run, tmp_path, "--tolerance", "0.1")[0] == 1
    files = f"--trace {tmp_path / 'trace.npz'} --itm {tmp_path / 't.csv'}"
    assert f"python -m planner import-trace --run {run.root} {files}" in capsys.readouterr().err


def test_an_imported_run_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_import(tmp_path)
    loose = ("--stay-allowance", "9", "--tail-share", "0")
    code, found = command(run, tmp_path, "--sweep", "0,0.1,0.2", "--objective", "batch", *loose)
    assert (code, found["objective"]) == (0, "batch")
    assert [point["tolerance"] for point in found["points"]] == [0, 0.1, 0.2]
    assert found["points"][-1]["speedup"] == pytest.approx(found["full_ms"] / found["points"][-1]["batch_ms"])
    assert found["points"][-1]["batch_ms"] < found["full_ms"]
    assert "time of a whole batch" in capsys.readouterr().out
    assert not run.plan.exists()
    assert run.remedy("sweep").startswith(f"python -m planner --sweep 0.0,0.1,0.2 --run {run.root} --batch-size 8")
    blind = RunFolder(root=tmp_path / "blind")
    logits = np.random.default_rng(0).normal(0, 2, (3, 50, 4))
    trace = write_npz(tmp_path / "b.npz", logits=logits, exits=np.array(EXITS))
    words = ["import-trace", "--trace", str(trace), "--itm", str(tmp_path / "t.csv"), "--run", str(blind.root)]
    assert main(words) == 0
    assert command(blind, tmp_path, "--sweep", "0.1")[0] == 2
    assert command(blind, tmp_path, "--sweep", "0.1", "--risk", "agreement")[0] == 0


def test_what_the_import_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, times = write_npz(tmp_path / "trace.npz", **arrays(20)), write_times(tmp_path / "t.csv")
    words = ["import-trace", "--trace", str(trace), "--itm", str(times)]
    assert main(words) == 2
    assert "--run runs/NAME" in capsys.readouterr().err
    (tmp_path / "ours" / "model").mkdir(parents=True)
    assert main([*words, "--run", str(tmp_path / "ours")]) == 2
    assert "a model of ours" in capsys.readouterr().err
    run = run_import(tmp_path)
    assert command(run, tmp_path, "--batch-size", "16")[0] == 2
    assert "go up to 8 rows" in capsys.readouterr().err


def test_a_trace_written_and_read_keeps_its_predictions(tmp_path: Path) -> None:
    logits, labels = np.random.default_rng(0).normal(0, 1, (2, 9, 3)), np.arange(9) % 3
    trace = build_trace({"logits": logits, "labels": labels})
    trace.save(tmp_path / "t.npz")
    back = Trace.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(back.predictions, trace.predictions)
    np.testing.assert_array_equal(back.labels, labels)
    np.testing.assert_array_equal(back.select(np.array([3, 3])).labels, labels[[3, 3]])
