"""Training of networks of tokens: its defaults, its optimiser, and the loss of a value with a spread."""

from __future__ import annotations

import pytest
import torch

from artifacts import TensorSpec, UsageError, find_task
from calibration.cli import make_parser, read_training
from calibration.training.config import TOKEN_DEFAULTS, JointConfig, describe_training
from calibration.training.losses import find_loss
from calibration.training.optimisers import make_optimiser, one_cycle

TOKENS = [TensorSpec(name=name, dtype="int64", row_shape=(8,)) for name in ("input_ids", "attention_mask")]
IMAGE = [TensorSpec(name="input", dtype="float32", row_shape=(3, 8, 8))]


def read(*words: str) -> JointConfig:
    config = read_training(make_parser().parse_args(["--train", "joint", *words]))
    assert isinstance(config, JointConfig)
    return config


def test_networks_of_tokens_have_defaults_of_their_own():
    fitted = read().fit(TOKENS)
    assert {name: getattr(fitted, name) for name in TOKEN_DEFAULTS} == dict(TOKEN_DEFAULTS)
    assert read().fit(IMAGE) == read()


def test_what_the_user_named_stays():
    fitted = read("--epochs", "13", "--learning-rate", "0.1", "--optimiser", "sgd").fit(TOKENS)
    assert (fitted.epochs, fitted.learning_rate, fitted.optimiser) == (13, 0.1, "sgd")
    assert (fitted.batch_size, fitted.backbone_epochs) == (32, 0)
    assert fitted.fit(TOKENS) == fitted
    assert JointConfig().fit(TOKENS) == JointConfig()  # a caller from Python means what it says


def test_one_epoch_trains_the_exits():
    assert read("--epochs", "1").backbone_epochs == 0


def test_records_name_the_optimiser_where_it_is_another():
    assert "optimiser" not in describe_training(JointConfig())
    assert describe_training(read().fit(TOKENS))["optimiser"] == "adamw"
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
