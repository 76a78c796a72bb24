"""Embedding the runtime in a host; run it after ``make demo``.

    python examples/embed.py runs/resnet/bundle

The host needs numpy, the bundle and its backend; the images come from the run's own test data here, but any array of
the dtype and shape in ``runtime.spec.inputs`` will do.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from artifacts import FINAL_HEAD_LABEL, PameError, RunFolder
from calibration import as_batch, load_run_data
from runtime import Result, Runtime


def load_queries(bundle: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``count`` test inputs of the run in which the bundle lies, and their labels."""
    samples = load_run_data(RunFolder(root=bundle.parent))
    rows = samples.indices_of("test")[:count]
    return as_batch(samples.inputs(rows)), samples.targets(rows)


def show_result(result: Result, labels: np.ndarray, exits: list[str]) -> None:
    """Prints one line per query, in input order: its answer, where it left, and when."""
    print("query  label  answer  left at      confidence  latency, ms")
    for row in range(len(labels)):
        print(
            f"{row:5d}  {labels[row]:5d}  {int(result.outputs[row].argmax()):6d}  "
            f"{exits[result.exit_index[row]]:11s}  {result.confidence[row]:10.3f}  {result.latency_ms[row]:11.3f}"
        )


def main(bundle: Path) -> None:
    """Answers a batch, streams another, and serves four threads at once."""
    queries, labels = load_queries(bundle, 256)
    with Runtime.load(bundle, threads=1) as runtime:
        exits = [planned.cut for planned in runtime.spec.plan.exits] + [FINAL_HEAD_LABEL]
        runtime.run(queries[:8])  # the first batch of a size binds its buffers
        show_result(runtime.run(queries[:8]), labels[:8], exits)

        print("\na stream hands out answers as queries leave:")
        started = perf_counter()
        for rows, outputs in runtime.stream(queries[:32]):
            print(
                f"  after {(perf_counter() - started) * 1e3:6.2f} ms: {len(outputs)} answers, queries {rows.tolist()}"
            )

        with ThreadPoolExecutor(4) as threads:  # one runtime for all of them
            results = list(threads.map(runtime.run, np.split(queries, 8)))
        answers = np.concatenate([result.outputs for result in results]).argmax(axis=1)
        print(f"\nfour threads: {(answers == labels).mean():.1%} of {len(labels)} answers are right")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/resnet/bundle"))
    except PameError as error:
        sys.exit(f"error: {error}")
