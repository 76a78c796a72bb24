"""Tasks of texts: set metrics from counts, and a regression with a predicted spread."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts import find_task

RANDOM = np.random.default_rng(0)


def matthews(labels: np.ndarray, answers: np.ndarray, classes: int) -> float:
    """The correlation of two choices by the covariances of their indicators (Gorodkin 2004, equation 8)."""
    true, given = (np.eye(classes)[chosen] - np.eye(classes)[chosen].mean(axis=0) for chosen in (labels, answers))
    return float((true * given).sum() / np.sqrt((true**2).sum() * (given**2).sum()))


def f1(labels: np.ndarray, answers: np.ndarray, classes: int) -> float:
    each = []
    for label in range(classes):
        right = ((labels == label) & (answers == label)).sum()
        precision, recall = right / (answers == label).sum(), right / (labels == label).sum()
        each.append(2 * precision * recall / (precision + recall))
    return float(each[1] if classes == 2 else np.mean(each))


REFERENCES = {"matthews": matthews, "f1": f1}


@pytest.mark.parametrize("name", ["matthews", "f1"])
@pytest.mark.parametrize("classes", [2, 4])
def test_set_metrics_follow_from_counts(name, classes):
    labels = RANDOM.integers(0, classes, 300)
    logits = RANDOM.standard_normal((300, classes)) + 1.5 * np.eye(classes)[labels]
    task = find_task(name)
    counts = task.counts((logits,), labels)
    expected = REFERENCES[name](labels, logits.argmax(axis=1), classes)
    assert task.summarise(counts.sum(axis=0)) == pytest.approx(expected)
    halves = counts[:100].sum(axis=0) + counts[100:].sum(axis=0)
    assert task.summarise(halves) == pytest.approx(expected)


def test_matthews_of_one_answer_is_zero():
    task = find_task("matthews")
    counts = task.counts((np.tile([1.0, 0.0], (10, 1)),), np.arange(10) % 2)
    assert task.summarise(counts.sum(axis=0)) == 0


def test_a_regression_is_judged_by_its_correlation():
    task = find_task("regression")
    targets = RANDOM.uniform(0, 5, 200).astype(np.float32)
    answers = (np.stack([0.5 * targets + RANDOM.normal(0, 0.4, 200), np.zeros(200)], axis=1),)
    counts = task.counts(answers, targets)
    expected = np.corrcoef(answers[0][:, 0], targets)[0, 1]
    assert task.summarise(counts.sum(axis=0)) == pytest.approx(expected)
    assert task.quality((np.array([[2.0, 0.0]]),), np.array([2.0])).tolist() == [1.0]
    assert task.agreement(answers, answers).tolist() == [1.0] * 200
    assert task.summarise(task.counts(answers, -targets).sum(axis=0)) == 0
