"""The documents' examples work."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import BUNDLE_JSON

ROOT = Path(__file__).parents[2]


def blocks_of(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def run_block(block: str, folder: Path, names: dict[str, Any]) -> None:
    (folder / "block.py").write_text(block)
    runpy.run_path(str(folder / "block.py"), names)


def test_embedding(toy_run: Any, tmp_path: Path) -> None:
    block = blocks_of("docs/embedding.md")[0].replace("runs/resnet/bundle", str(toy_run.bundle))
    answered: list[int] = []
    names = {"batch": toy_run.inputs[:20], "answer": lambda rows, outputs: answered.extend(rows.tolist())}
    run_block(block, tmp_path, names)
    assert sorted(answered) == list(range(20))


def test_serving(toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in blocks_of("docs/serving.md") if "asyncio.run" in block]
    answered: list[int] = []
    names = {"rows": toy_run.inputs[:20], "answer": lambda places, outputs: answered.extend(places.tolist())}
    run_block(block.replace("runs/resnet/bundle", str(toy_run.bundle)), tmp_path, names)
    assert sorted(answered) == list(range(20))
    assert "'answered': 2" in capsys.readouterr().out


def test_the_hosts_own_tests(toy_run: Any, tmp_path: Path) -> None:
    (block,) = [block for block in blocks_of("docs/embedding.md") if "FakeEngine" in block]
    block = block.replace("runs/resnet/bundle/bundle.json", str(toy_run.bundle / BUNDLE_JSON))
    run_block(block, tmp_path, {})


def test_the_example(toy_run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "embed.py"))
    monkeypatch.setitem(
        example["main"].__globals__, "load_queries", lambda bundle, count: (toy_run.inputs[:256], toy_run.labels[:256])
    )
    example["main"](toy_run.bundle)
    out = capsys.readouterr().out
    logits = [toy_run.answer_by_numpy(toy_run.inputs[:256], index)[0] for index in range(2)]
    early = toy_run.answer_by_numpy(toy_run.inputs[:256], 0)[1] >= toy_run.threshold
    answers = np.where(early, logits[0].argmax(1), logits[1].argmax(1))
    assert f"{(answers == toy_run.labels[:256]).mean():.1%} of 256 answers are right" in out
    assert "after" in out
