"""Texts through all commands: a small BERT is trained with its exits, planned, bundled, served and measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from artifacts import InputError, UsageError, open_model
from calibration.cli import main as calibrate
from engines import GraphRunner
from export.cli import main as export
from planner.commands.main import main as plan
from runtime import Runtime, prepare_texts
from runtime.bench.command import main as bench
from tests.text_worlds import FLAGS, LENGTH, make_sentences, write_sentences, write_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a trained network, its exits and its trace, and the folder of its data."""
    root = tmp_path_factory.mktemp("text")
    run, data = root / "run", write_sentences(root / "data")
    tokenizer = write_tokenizer(root / "net")
    words = ["--weights", "random", "--tokenizer", str(tokenizer), *FLAGS, "--run", str(run)]
    assert export(["bert", "--segments", *words]) == 0
    words = ["--data", str(data), "--epochs", "5", "--learning-rate", "0.004", "--threads", "1", "--run", str(run)]
    assert calibrate(["--train", "joint", *words]) == 0
    return run, data


@pytest.fixture(scope="module")
def bundle(trained):
    run, _ = trained
    options = ["--tolerance", "0.05", "--batch-size", "8", "--threads", "1", "--stay-allowance", "10"]
    assert plan(["--run", str(run), "--delta", "0.2", *options]) == 0
    return run / "bundle"


def test_the_exits_learn(trained):
    run, _ = trained
    recipe = json.loads((run / "training" / "weights" / "recipe.json").read_text())
    assert min(recipe["test_metric"].values()) > 0.8
    assert (run / "training" / "weights" / "tokenizer.json").is_file()


def test_rows_are_answered_as_by_the_whole_network(trained, bundle):
    run, _ = trained
    model = open_model(run / "model", remedy="")
    texts = [text for text, _ in make_sentences(40, 9)]
    with Runtime.load(bundle) as runtime, GraphRunner(model.path(model.spec.full)) as whole:
        batch = prepare_texts(texts, runtime)
        result = runtime.run(batch)
        expected = whole.run(batch)["logits"]
        stayed = result.exit_index == runtime.stage_count - 1
        assert np.allclose(result.outputs[stayed], expected[stayed], atol=1e-4)
        alone = [runtime.run(prepare_texts(text, runtime)) for text in texts]
    assert np.allclose(result.outputs, np.concatenate([single.outputs for single in alone]), atol=1e-4)
    assert result.exit_index.tolist() == [int(single.exit_index[0]) for single in alone]


def test_texts_that_a_host_may_not_cut_are_refused(bundle):
    with Runtime.load(bundle) as runtime:
        assert prepare_texts("film " * 50, runtime)["attention_mask"].sum() == LENGTH
        with pytest.raises(InputError, match=f"text 1 is longer than {LENGTH} tokens"):
            prepare_texts(["film", "film " * 50], runtime, too_long="refuse")
        with pytest.raises(InputError, match="there are no texts"):
            prepare_texts([], runtime)
        with pytest.raises(UsageError, match="too_long"):
            prepare_texts("film", runtime, too_long="drop")
        assert prepare_texts(("film", "ends"), runtime)["token_type_ids"].sum() == 2  # a pair


def test_the_bench_and_the_report_know_texts(trained, bundle, tmp_path):
    run, _ = trained
    out = tmp_path / "bench.json"
    assert bench(["--run", str(run), "--samples", "32", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["samples"] == 32
    assert plan(["report", "--run", str(run)]) == 0


def test_trained_weights_are_exported_again_with_their_tokenizer(trained, tmp_path):
    run, _ = trained
    again = tmp_path / "again"
    weights = run / "training" / "weights" / "weights.safetensors"
    assert export(["bert", "--weights", str(weights), "--run", str(again)]) == 0
    model, first = (open_model(folder / "model", remedy="") for folder in (again, run))
    assert model.spec.text == first.spec.text
    assert model.spec.settings["layers"] == 3


def test_wrong_data_is_refused_with_the_fix(trained, tmp_path, capsys):
    run, _ = trained
    (tmp_path / "six.tsv").write_text("text\tlabel\n" + "".join(f"film\t{i % 6}\n" for i in range(60)))
    assert calibrate(["--run", str(run), "--data", str(tmp_path / "six.tsv")]) == 1
    assert "6 classes" in capsys.readouterr().err
