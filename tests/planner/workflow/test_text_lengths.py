"""Texts of several lengths through all commands: batches of a small BERT run at the smallest length that holds them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from artifacts import open_model
from benchmarks.smaller_network import main as compare_cut_offs
from calibration.cli import main as calibrate
from export.cli import main as export
from planner.commands.main import main as plan
from runtime import Runtime, prepare_texts
from runtime.bench.command import main as bench
from tests.text_worlds import LENGTH, TINY, make_sentences, write_sentences, write_tokenizer

pytestmark = pytest.mark.slow
SHORT = 6


def test_a_bert_of_several_lengths_reaches_a_bundle(tmp_path):
    run, data = str(tmp_path / "run"), str(write_sentences(tmp_path / "data"))
    tokenizer = str(write_tokenizer(tmp_path / "net"))
    words = ["--weights", "random", "--tokenizer", tokenizer, *TINY, "--lengths", f"{SHORT},{LENGTH}", "--run", run]
    assert export(["bert", "--segments", *words]) == 0
    words = ["--data", data, "--epochs", "3", "--learning-rate", "0.004", "--threads", "1", "--run", run]
    assert calibrate(["--train", "joint", *words]) == 0
    options = ["--tolerance", "0.05", "--batch-size", "8", "--threads", "1", "--stay-allowance", "10"]
    assert plan(["--run", run, "--delta", "0.2", *options]) == 0
    assert open_model(tmp_path / "run" / "model", remedy="").spec.lengths == (SHORT, LENGTH)
    texts = [text for text, _ in make_sentences(24, 9)]
    with Runtime.load(tmp_path / "run" / "bundle") as runtime:
        assert runtime.spec.lengths == (SHORT, LENGTH)
        result = runtime.run(prepare_texts(texts, runtime))
        alone = [runtime.run(prepare_texts(text, runtime)) for text in texts]
    np.testing.assert_allclose(result.outputs, np.concatenate([single.outputs for single in alone]), atol=1e-4)
    assert result.exit_index.tolist() == [int(single.exit_index[0]) for single in alone]
    out = tmp_path / "bench.json"
    assert bench(["--run", run, "--samples", "32", "--json", str(out)]) == 0
    words = ["--run", run, "--samples", "16", "--rounds", "1", "--json", str(tmp_path / "smaller.json")]
    assert compare_cut_offs(words) == 0
    assert set(json.loads((tmp_path / "smaller.json").read_text())["metric"]) > {"full network", "bundle"}
    assert {entry["length"] for entry in json.loads(out.read_text())["lengths"]} <= {SHORT, LENGTH}
