"""Text classifiers of Hugging Face: their tokenizer, the mask that their cuts carry, and the heads that read it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from artifacts import InputError, RunFolder, UsageError
from engines import GraphRunner
from export import ExportOptions, add_heads, build_missing_heads, export_model, mask_of
from export.from_torch.masks import find_mask
from export.nets.token_heads import MeanHead, TokenHead
from tests.text_worlds import LENGTH, WORDS, write_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=len(WORDS), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32, num_labels=3,
        id2label={0: "no", 1: "maybe", 2: "yes"},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("distil")
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    run = RunFolder(root=tmp_path_factory.mktemp("run"))
    return export_model(run, ExportOptions(source=f"hf:{folder}", length=LENGTH)).model


def test_the_tokenizer_and_the_classes_belong_to_the_model(model):
    assert model.spec.text.inputs == ("input_ids", "attention_mask")
    assert model.spec.text.length == LENGTH
    assert model.artifact.path("tokenizer.json").is_file()
    assert model.spec.classes == ("no", "maybe", "yes")


def test_the_mask_is_found_among_what_a_cut_carries(model):
    tokens = [cut for cut in model.spec.cuts if len(cut.main.row_shape) == 2]
    found = [find_mask(model, cut) for cut in tokens]
    assert [mask is not None for mask in found] == [bool(cut.carried) for cut in tokens]
    assert any(found)
    heads = build_missing_heads(model)
    kinds = {cut.name: type(heads[cut.name]) for cut in tokens if cut.name in heads}
    assert kinds == {cut.name: MeanHead if cut.carried else TokenHead for cut in tokens if cut.name in heads}


def test_a_head_over_the_mean_reads_the_mask_in_its_graph(model):
    heads = {name: head for name, head in build_missing_heads(model).items() if mask_of(head) is not None}
    name, head = next(iter(heads.items()))
    trained = add_heads(model, {name: head.eval()}, inputs={})
    graph = trained.spec.heads[name]
    mask = mask_of(head)
    assert [spec.name for spec in graph.inputs] == [name, mask.name]
    random = np.random.default_rng(0)
    rows = {spec.name: random.standard_normal((3, *spec.row_shape)).astype(spec.dtype) for spec in graph.inputs}
    with GraphRunner(trained.path(graph)) as runner:
        found = runner.run(rows)[graph.answers[0]]
    with torch.no_grad():
        expected = head(torch.from_numpy(rows[name]), torch.from_numpy(rows[mask.name]))
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_what_cannot_be_is_refused(folder, tmp_path):
    run = RunFolder(root=tmp_path / "run")
    with pytest.raises(UsageError, match="has places for 32 tokens"):
        export_model(run, ExportOptions(source=f"hf:{folder}", length=64))
    with pytest.raises(UsageError, match="how many with --length"):
        export_model(run, ExportOptions(source=f"hf:{folder}", input_shapes={"": (12,)}))
    with pytest.raises(UsageError, match="there is no such file"):
        export_model(run, ExportOptions(source=f"hf:{folder}", length=12, tokenizer=str(tmp_path / "none.json")))
    other = tmp_path / "regression"
    shutil.copytree(folder, other)
    config = (other / "config.json").read_text().replace('"0": "no",', "").replace('"1": "maybe",', "")
    (other / "config.json").write_text(config.replace('"2": "yes"', '"0": "score"'))
    with pytest.raises(InputError, match="one number and no spread"):
        export_model(run, ExportOptions(source=f"hf:{other}", length=12))
