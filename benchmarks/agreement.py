"""Agreement of ``Runtime``, row by row, with the network that is chained by hand.

    python benchmarks/agreement.py --run runs/resnet --json agreement.json

The reference opens the model folder's ONNX files (segments, exit heads of the plan, final head) one by one, sends *all*
rows of a batch through every one of them without gathering anything, and decides afterwards in numpy: a row leaves at
the first planned exit whose confidence is at least the threshold, compared in float32. ``Runtime`` answers the same
batches from the bundle: merged stages, bound buffers, survivors gathered. Batches have random sizes from 1 to twice the
bundle's largest, so that splits occur too, and random rows of the test part.

It counts the rows that leave elsewhere and the rows whose answer differs (another class, or any output that differs by
more than the parity limit of the export, 1e-4 relative); one mismatch makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import ExitPlan, Model, RunFolder, describe_choice, environment_fingerprint, find_run, open_model
from artifacts.console import add_common_arguments, print_table, run_command, track
from calibration import as_batch, load_run_data
from engines import GraphRunner
from runtime import Result, Runtime

RELATIVE_LIMIT = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """Expected results of the rows of a batch: where they leave, with which confidence and answer."""

    exit_index: np.ndarray
    confidence: np.ndarray
    answer: np.ndarray


class HandMadeChain:
    """Chain of the graphs of a model folder, each on its own and over all rows."""

    def __init__(self, model: Model, plan: ExitPlan, stack: ExitStack) -> None:
        spec, exits = model.spec, [exit_.cut for exit_ in plan.exits]
        graphs = [*spec.segments, *(spec.heads[name] for name in exits), spec.final_head or spec.full]
        self._runners = [(graph, stack.enter_context(GraphRunner(model.path(graph)))) for graph in graphs]
        self._input = spec.full.inputs[0].name
        self._thresholds = np.array([exit_.threshold for exit_ in plan.exits], np.float32)
        self._learned = [plan.confidences.get(name) for name in exits]
        self._probabilities = spec.settings.get("confidence") == "max"
        self._heads = [graph for graph, _ in self._runners[len(spec.segments) :]]

    def answer(self, batch: np.ndarray) -> Expected:
        """Sends a batch through everything and decides afterwards."""
        values: dict[str, np.ndarray] = {self._input: batch}
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for graph, runner in self._runners:
            made: Mapping[str, np.ndarray] = runner.run({spec.name: values[spec.name] for spec in graph.inputs})
            values |= made
            if graph in self._heads:
                confidence = made[graph.confidence] if graph.confidence else np.ones(len(batch), np.float32)
                answers = made[graph.answers[0]]
                learned = self._learned[len(found)] if len(found) < len(self._learned) else None
                if learned is not None:
                    features = describe_choice(answers, probabilities=self._probabilities)
                    confidence = learned.apply(features, answers.argmax(axis=1))
                found.append((answers, confidence))
        confidences = np.stack([confidence for _, confidence in found])
        leaves = np.concatenate([confidences[:-1] >= self._thresholds[:, None], np.ones((1, len(batch)), np.bool_)])
        exit_index = leaves.argmax(axis=0)
        answer = np.stack([answers for answers, _ in found])[exit_index, np.arange(len(batch))]
        return Expected(exit_index=exit_index, confidence=confidences[exit_index, np.arange(len(batch))], answer=answer)


def compare_batch(expected: Expected, result: Result, thresholds: np.ndarray) -> dict[str, float]:
    """Counts the differences in one batch, and measures how large they are.

    Args:
        expected: from the chain made by hand.
        result: from the runtime.
        thresholds: (E,) float32.
    """
    outputs = result.outputs if isinstance(result.outputs, np.ndarray) else result.outputs[0]
    difference = np.abs(outputs - expected.answer)
    limit = RELATIVE_LIMIT * np.abs(expected.answer).max(axis=1, keepdims=True)
    other = (difference > limit).any(axis=1) | (outputs.argmax(axis=1) != expected.answer.argmax(axis=1))
    early = expected.exit_index < len(thresholds)
    margins = expected.confidence[early] - thresholds[expected.exit_index[early]]
    return {
        "rows": len(outputs),
        "leave_mismatches": int((result.exit_index != expected.exit_index).sum()),
        "answer_mismatches": int(other.sum()),
        "max_abs_difference": float(difference.max()),
        "max_confidence_difference": float(np.abs(result.confidence - expected.confidence).max()),
        "smallest_margin_over_a_threshold": float(margins.min(initial=1.0)),
    }


def compare(run: RunFolder, bundle: Path, *, batches: int, seed: int, data: Path | None) -> dict[str, Any]:
    """Runs random batches through both and sums up the differences."""
    samples = load_run_data(run, data)
    random = np.random.default_rng(seed)
    test = samples.indices_of("test")
    with ExitStack() as stack:
        runtime = stack.enter_context(Runtime.load(bundle))
        exits = runtime.spec.plan.exits
        model = open_model(run.model, remedy=run.remedy("export"))
        thresholds = np.array([exit_.threshold for exit_ in exits], np.float32)
        chain = HandMadeChain(model, runtime.spec.plan, stack)
        sizes = random.integers(1, 2 * runtime.spec.max_batch_size + 1, batches)
        found = []
        for size in track(sizes, description="comparing", total=batches):
            batch = as_batch(samples.inputs(random.choice(test, size)))
            found.append(compare_batch(chain.answer(batch), runtime.run(batch), thresholds))
    combinations: dict[str, Callable[[Iterable[float]], float]] = {
        "rows": sum,
        "leave_mismatches": sum,
        "answer_mismatches": sum,
        "max_abs_difference": max,
        "max_confidence_difference": max,
        "smallest_margin_over_a_threshold": min,
    }
    return {
        "model": model.spec.name,
        "exits": [exit_.cut for exit_ in exits],
        "batches": batches,
        "largest_batch": int(sizes.max()),
        "seed": seed,
        **{name: combine(counts[name] for counts in found) for name, combine in combinations.items()},
        "environment": environment_fingerprint(),
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/agreement.py", description=__doc__.partition("\n")[0])
    add_common_arguments(parser)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle than the run's own")
    parser.add_argument("--data", type=Path, metavar="DIR", help="your images: class folders or an .npz")
    parser.add_argument("--batches", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns 0 without mismatches, 1 with some."""
    mismatches = 0

    def body(arguments: argparse.Namespace) -> dict[str, Any]:
        nonlocal mismatches
        run = find_run(arguments.run)
        bundle = arguments.bundle or run.bundle
        result = compare(run, bundle, batches=arguments.batches, seed=arguments.seed, data=arguments.data)
        mismatches = result["leave_mismatches"] + result["answer_mismatches"]
        rows = [(name, value) for name, value in result.items() if name != "environment"]
        print_table("", ["agreement", ""], rows, to_stderr=arguments.json == "-")
        return result

    return run_command(body, make_parser().parse_args(argv)) or int(mismatches > 0)


if __name__ == "__main__":
    sys.exit(main())
