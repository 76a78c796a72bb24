"""Training of networks of tokens: its defaults, its optimiser, and the loss of a value with a spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts import FINAL_HEAD, TensorSpec, TextEncoder, TextPreprocessing, UsageError, find_task
from calibration.cli import make_parser, read_training
from calibration.text.samples import TextSamples
from calibration.text.store import TextStore
from calibration.training.config import DENSE_DEFAULTS, TOKEN_DEFAULTS, JointConfig, describe_training
from calibration.training.end_to_end import measure_exits
from calibration.training.losses import find_loss
from calibration.training.minibatches import draw_epoch, group_by_size
from calibration.training.optimisers import make_optimiser, one_cycle
from export.nets.bert import Bert, token_inputs
from export.nets.multi_exit import MultiExitNet
from tests.text_worlds import CONFIG, LENGTH, make_sentences, write_tokenizer

TOKENS = [TensorSpec(name=name, dtype="int64", row_shape=(8,)) for name in ("input_ids", "attention_mask")]
IMAGE = [TensorSpec(name="input", dtype="float32", row_shape=(3, 8, 8))]


def read(*words: str) -> JointConfig:
    config = read_training(make_parser().parse_args(["--train", "joint", *words]))
    assert isinstance(config, JointConfig)
    return config


def test_networks_of_tokens_have_defaults_of_their_own():
    fitted = read().fit(TOKENS, "classification")
    assert {name: getattr(fitted, name) for name in TOKEN_DEFAULTS} == dict(TOKEN_DEFAULTS)
    assert read().fit(IMAGE, "classification") == read()


@pytest.mark.parametrize("task", ["segmentation", "pose"])
def test_networks_of_dense_answers_have_defaults_of_their_own(task):
    fitted = read("--distillation", "0.25").fit(IMAGE, task)
    usual = DENSE_DEFAULTS[task]
    assert {name: getattr(fitted, name) for name in usual} == {**usual, "distillation": 0.25}
    assert JointConfig().fit(IMAGE, task) == JointConfig()


def test_what_the_user_named_stays():
    fitted = read("--epochs", "13", "--learning-rate", "0.1", "--optimiser", "sgd").fit(TOKENS, "classification")
    assert (fitted.epochs, fitted.learning_rate, fitted.optimiser) == (13, 0.1, "sgd")
    assert (fitted.batch_size, fitted.backbone_epochs) == (32, 0)
    assert fitted.fit(TOKENS, "classification") == fitted
    assert JointConfig().fit(TOKENS, "classification") == JointConfig()  # a caller from Python means what it says


def test_one_epoch_trains_the_exits():
    assert read("--epochs", "1").backbone_epochs == 0


@pytest.mark.parametrize(
    ("words", "inputs", "task"),
    [
        (("--optimiser", "sgd"), TOKENS, "classification"),
        (("--optimiser", "sgd"), IMAGE, "segmentation"),
        (("--optimiser", "adamw"), IMAGE, "pose"),
        (("--optimiser", "adamw"), IMAGE, "classification"),
    ],
)
def test_another_optimiser_than_the_usual_one_needs_a_rate_of_its_own(words, inputs, task):
    with pytest.raises(UsageError, match="--learning-rate"):
        read(*words).fit(inputs, task)
    assert read(*words, "--learning-rate", "0.01").fit(inputs, task).learning_rate == 0.01


def test_records_name_the_optimiser_where_it_is_another():
    assert "optimiser" not in describe_training(JointConfig())
    assert describe_training(read().fit(TOKENS, "classification"))["optimiser"] == "adamw"
    assert "given" not in describe_training(read())


@pytest.mark.parametrize("words", [("--optimiser", "adamw"), ("--warm-up", "0.1")])
def test_flags_of_joint_training_are_refused_elsewhere(words):
    with pytest.raises(UsageError, match="goes with --train joint"):
        read_training(make_parser().parse_args(words))


def test_biases_and_norms_are_not_decayed():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, kept = make_optimiser(net, JointConfig(optimiser="adamw", weight_decay=0.1)).param_groups
    assert [tuple(value.shape) for value in decayed["params"]] == [(4, 3)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(kept["params"]) == 3


def test_the_rate_rises_and_falls():
    rates = [one_cycle(step / 100, 0.1) for step in range(101)]
    assert max(rates) == rates[10] == 1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert one_cycle(0.0, 0.0) == 1


def test_the_likelihood_of_a_value_with_a_spread_finds_both():
    loss = find_loss(find_task("regression"))
    targets = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.5 + 2
    answer = torch.zeros(1, 2, requires_grad=True)
    optimiser = torch.optim.Adam([answer], 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        loss.of_targets(answer.expand(4000, 2), targets).backward()
        optimiser.step()
    value, spread = answer.detach()[0]
    assert float(value) == pytest.approx(2, abs=0.05)
    assert float(spread.exp()) == pytest.approx(0.5, abs=0.05)
    near = loss.of_teacher(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 3.0]]), 1.0)
    far = loss.of_teacher(torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 3.0]]), 1.0)
    assert near < far


def make_samples(folder: Path, count: int) -> TextSamples:
    store, rows = TextStore(1), make_sentences(count, seed=3)
    for text, _ in rows:
        store.append(text)
    store.flush()
    wanted = TextPreprocessing(length=LENGTH, ids="input_ids", mask="attention_mask", types="token_type_ids", pad_id=0)
    everything = np.arange(count)
    return TextSamples(
        name="sentences", texts=store, labels=np.array([label for _, label in rows]), classes=("bad", "good"),
        parts={"train": everything, "calibrate": everything[:0], "test": everything[:0]},
        encoder=TextEncoder(write_tokenizer(folder), wanted, token_inputs(CONFIG)),
    )  # fmt: skip


def test_batches_hold_texts_of_one_size(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(1000)
    sizes = order % 97
    grouped = group_by_size(order, sizes, 8)
    assert sorted(grouped.tolist()) == list(range(1000))
    spread = np.ptp((grouped % 97).reshape(-1, 8), axis=1)
    assert np.median(spread) <= 3
    assert np.median(np.ptp(sizes.reshape(-1, 8), axis=1)) > 50
    firsts = (grouped % 97).reshape(-1, 8)[:50, 0]
    assert abs(np.corrcoef(firsts, np.arange(50))[0, 1]) < 0.5, "the batches come in random order"
    np.testing.assert_array_equal(group_by_size(order, sizes, 8), grouped)

    samples = make_samples(tmp_path, 320)
    config = JointConfig(batch_size=8, augment="none")
    (first, *rest) = [piece for (piece,) in draw_epoch(samples, config, 0, workers=0).batches]
    lengths = [piece.inputs["attention_mask"].sum(axis=1) for piece in (first, *rest)]
    assert np.median([np.ptp(found) for found in lengths]) <= 2
    assert sum(map(len, lengths)) == len(samples.indices_of("train"))


def test_columns_that_no_text_fills_change_no_metric(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 60)
    inputs = samples.inputs(np.arange(60))
    trimmed = samples.trim(inputs)
    longest = int(inputs["attention_mask"].sum(axis=1).max())
    assert {array.shape for array in trimmed.values()} == {(60, longest)}
    torch.manual_seed(0)
    net = MultiExitNet(Bert(CONFIG), {})
    found = measure_exits(net, samples, find_task("classification"), "train", workers=0)
    with torch.inference_mode():
        _, final = net.eval()(*map(torch.from_numpy, inputs.values()))
    right = (final.argmax(dim=1).numpy() == samples.targets(np.arange(60))).mean()
    assert found == {FINAL_HEAD: pytest.approx(right)}
