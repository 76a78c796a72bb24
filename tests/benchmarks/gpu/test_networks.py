"""The networks that a GPU machine makes for itself, in the small sizes of a rehearsal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import UsageError
from benchmarks.gpu.nets.making import make_subject, network_inputs, torch_module
from engines import run_graph


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "resnet50"])
def test_a_network_is_exported_cut_and_rebuilt_in_torch(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    subject = make_subject(name, tmp_path, rehearsal=True)
    spec = subject.spec
    assert (len(spec.stages), len(spec.heads), len(spec.thresholds)) == (3, 2, 2)
    batch = subject.batch(4, start=254)
    known = dict(batch)
    for graph in spec.stages:
        known |= run_graph(subject.folder / graph.file, {tensor.name: known[tensor.name] for tensor in graph.inputs})
    whole = run_graph(subject.folder / spec.full.file, batch)
    for name_, last in zip(spec.full.answers, spec.stages[-1].answers, strict=True):
        np.testing.assert_allclose(known[last], whole[name_], rtol=1e-4, atol=1e-4)
    module, inputs = torch_module(name, rehearsal=True), network_inputs(name, 4, rehearsal=True)
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(array) for array in inputs.values()))
    assert tuple(answer.shape) == whole[spec.full.answers[0]].shape


def test_an_unknown_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no network 'gpt'; there are demo, resnet50, bert, toy"):
        make_subject("gpt", tmp_path)
