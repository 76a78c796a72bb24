"""Class names among the notes of an ONNX file: read as exporters write them, and recorded with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from artifacts import RunFolder
from export import ExportOptions, export_model
from export.graphs.class_names import find_class_names
from tests.export.export_graphs import write_convnet


@pytest.mark.parametrize(
    ("notes", "names"),
    [
        ({"names": "{0: 'cat', 1: 'dog'}"}, ("cat", "dog")),
        ({"names": "{1: 'dog', 0: 'cat', 2: 'elk'}"}, ("cat", "dog", "elk")),
        ({"id2label": '{"0": "cat", "1": "dog"}'}, ("cat", "dog")),
        ({"classes": '["cat", "dog"]'}, ("cat", "dog")),
        ({"labels": "('cat', 'dog')"}, ("cat", "dog")),
        ({"names": "{0: 'cat', 2: 'dog'}"}, ()),
        ({"names": "['cat', 'cat']"}, ()),
        ({"names": "__import__('os').getcwd()"}, ()),
        ({"names": "[1, 2]"}, ()),
        ({"names": "cat and dog"}, ()),
        ({}, ()),
    ],
)
def test_names_are_read_as_they_are_written(notes: dict[str, str], names: tuple[str, ...]) -> None:
    assert find_class_names(notes) == names


def test_the_model_records_them(graph: Any, tmp_path: Path) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="names", value="{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}")
    onnx.save(model, path)
    made = export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=str(path))).model
    assert made.spec.classes == ("a", "b", "c", "d", "e")
