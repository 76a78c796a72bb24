"""The BERT family: against transformers, its graph against torch, and what no row may depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from artifacts import InputError, RunFolder, UsageError
from engines import GraphRunner
from export import ExportOptions, export_model, rebuild_net
from export.nets.bert import BIAS, Bert, BertConfig
from export.nets.bert_files import open_bert, rename_parameters
from export.nets.heads import answer_features, mask_of
from export.nets.token_heads import MaskTensor, MeanHead, mask_example
from tests.text_worlds import CONFIG, LENGTH, WORDS, write_tokenizer

transformers = pytest.importorskip("transformers")


def draw(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, LENGTH + 1, rows)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    ids = random.integers(2, len(WORDS), (rows, LENGTH)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": random.integers(0, 2, (rows, LENGTH)) * mask}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=3, id2label={0: "no", 1: "maybe", 2: "yes"},
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("theirs")
    net.save_pretrained(folder)
    write_tokenizer(folder)
    return net, folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    run = RunFolder(root=tmp_path_factory.mktemp("bert"))
    tokenizer = write_tokenizer(run.root / "net")
    options = ExportOptions(source="bert", net=CONFIG, weights="random", tokenizer=str(tokenizer))
    return export_model(run, options).model


def test_weights_of_hugging_face_answer_the_same(theirs):
    net, folder = theirs
    found = open_bert(folder, BertConfig(length=LENGTH))
    assert (found.config.layers, found.config.pooling, found.classes) == (3, "pooler", ("no", "maybe", "yes"))
    ours = Bert(found.config).eval()
    state, drawn = found.adapt(net.state_dict(), ours.state_dict())
    ours.load_state_dict(state)
    assert drawn == []
    rows = {name: torch.from_numpy(array) for name, array in draw(16).items()}
    with torch.no_grad():
        assert torch.allclose(ours(*rows.values()), net(**rows).logits, atol=1e-5)


def test_an_encoder_without_a_classifier_gets_a_head_of_its_own(theirs):
    net, _ = theirs
    ours = Bert(CONFIG)
    own = ours.state_dict()
    state, drawn = rename_parameters(net.bert.state_dict(), own)
    assert drawn == ["head.fc.weight", "head.fc.bias"]
    ours.load_state_dict(state)


def test_options_that_contradict_the_weights_are_refused(theirs, tmp_path):
    _, folder = theirs
    with pytest.raises(UsageError, match="--layers 4 contradicts"):
        open_bert(folder, BertConfig(layers=4))
    with pytest.raises(InputError, match=r"there is no config\.json"):
        open_bert(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(InputError, match="of the kind 'roberta'"):
        open_bert(tmp_path, CONFIG)


@pytest.mark.parametrize("wrong", [{"width": 10, "heads": 3}, {"length": 600}, {"classes": 1}, {"pooling": "last"}])
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        BertConfig(**wrong)


def test_the_mask_crosses_every_cut(exported):
    assert [cut.name for cut in exported.spec.cuts] == ["layer.0", "layer.1", "layer.2"]
    assert all([spec.name for spec in cut.carried] == [BIAS] for cut in exported.spec.cuts)
    assert exported.path(exported.spec.full).with_name("tokenizer.json").is_file()
    assert exported.spec.text.length == LENGTH


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_the_graph_answers_as_torch(exported, rows):
    net, inputs = rebuild_net(exported), draw(rows)
    with GraphRunner(exported.path(exported.spec.full)) as runner:
        found = runner.run(inputs)["logits"]
    with torch.no_grad():
        expected = net.backbone(*map(torch.from_numpy, inputs.values()))
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_a_row_depends_neither_on_what_fills_it_up_nor_on_its_neighbours(exported):
    inputs = draw(8)
    other = {name: array.copy() for name, array in inputs.items()}
    empty = other["attention_mask"] == 0
    other["input_ids"][empty], other["token_type_ids"][empty] = 5, 1
    with GraphRunner(exported.path(exported.spec.full)) as runner:
        together, filled = (runner.run(rows)["logits"] for rows in (inputs, other))
        alone = [runner.run({name: array[i : i + 1] for name, array in inputs.items()})["logits"] for i in range(8)]
    assert np.allclose(together, filled, atol=1e-6)
    assert np.allclose(together, np.concatenate(alone), atol=1e-5)


def test_training_leaves_out_columns_that_no_text_reaches(exported):
    net = rebuild_net(exported)
    rows = draw(4)
    rows["attention_mask"][:, 5:] = 0
    tensors = tuple(map(torch.from_numpy, rows.values()))
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        exits, final = net.train()(*tensors)
        whole_exits, whole = net.eval()(*tensors)
    assert torch.allclose(final, whole, atol=1e-6)
    assert all(torch.allclose(exits[name], whole_exits[name], atol=1e-6) for name in exits)


@pytest.mark.parametrize(
    "mask",
    [
        MaskTensor(name="mask", row_shape=(4,), dtype="int64"),
        MaskTensor(name="mask", row_shape=(1, 1, 4), limit=-5000),
        MaskTensor(name="mask", row_shape=(1, 4, 4), dtype="bool", below=True),
    ],
)
def test_the_mean_is_that_of_the_tokens_which_the_mask_keeps(mask):
    head = MeanHead(3, 2, mask)
    x = torch.randn(2, 4, 3)
    values = mask_example(mask, 2)
    kept = mask.read(values).bool()
    assert [int(row.sum()) for row in kept] == [2, 4]
    expected = torch.stack([x[row, kept[row]].mean(dim=0) for row in range(2)])
    assert torch.allclose(head.reduce(x, values), expected, atol=1e-6)
    assert torch.equal(answer_features(head, {"cut": x, "mask": values}, "cut"), head(x, values))
    assert mask_of(head) is mask
