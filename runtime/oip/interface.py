"""``ModelInterface``: a bundle as clients see it: its tensors, metadata and configuration, and the tensors of answers.

Besides the network's own outputs there are ``exit_index`` (the stage after which a row left) and ``confidence``. Where
the network has outputs of these names, they begin with ``pame_``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts import BundleSpec, InputError, TensorSpec
from runtime.oip.calls import InferCall, OutputTensor, WantedOutput
from runtime.oip.classification import classify
from runtime.oip.datatypes import BYTES, datatype_of

PLATFORM = "pame"
VERSION = "1"
_ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of rows.

    Attributes:
        outputs: one (n, ...) array per output of the network.
        exit_index: (n,) the stage after which each row left.
        confidence: (n,) float32.
        rows: (n,) places of the rows in the request, where they are not all of it, in order.
    """

    outputs: Sequence[np.ndarray]
    exit_index: np.ndarray
    confidence: np.ndarray
    rows: np.ndarray | None = None


class ModelInterface:
    """The tensors of a bundle.

    Attributes:
        inputs: of the network.
        outputs: name -> datatype and shape of a row, the extra ones last.
    """

    def __init__(self, spec: BundleSpec) -> None:
        """Raises ``InputError`` where the protocol has no datatype for a tensor."""
        self.inputs = spec.inputs
        self._datatypes = {tensor.name: datatype_of(tensor.dtype) for tensor in spec.inputs}
        self._labels = spec.classes
        own = [tensor.name for tensor in spec.outputs]
        extra = (
            TensorSpec(name=_free_name("exit_index", own), dtype="int64", row_shape=()),
            TensorSpec(name=_free_name("confidence", own), dtype="float32", row_shape=()),
        )
        self.outputs = {
            tensor.name: (datatype_of(tensor.dtype), tensor.row_shape) for tensor in (*spec.outputs, *extra)
        }
        self._network_outputs = len(own)
        self._all_outputs = {
            binary: tuple(WantedOutput(name, binary) for name in self.outputs) for binary in (False, True)
        }

    def metadata(self, name: str) -> dict[str, Any]:
        """Returns the metadata of the model under a name: shapes with -1 for the batch axis and for lengths."""
        return {
            "name": name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": [_metadata_of(spec.name, datatype_of(spec.dtype), _open_shape(spec)) for spec in self.inputs],
            "outputs": [_metadata_of(output, *found) for output, found in self.outputs.items()],
        }

    def config(self, name: str, *, max_rows: int, priorities: int, raw: str | None) -> dict[str, Any]:
        """Returns the configuration of the model as Triton's clients read it: shapes without the batch axis, -1 for
        lengths.

        Args:
            name: of the model.
            max_rows: the most rows of a request, called ``max_batch_size`` there.
            priorities: levels of priority.
            raw: what may be sent raw; ``None``: nothing.
        """
        inputs = [
            {"name": spec.name, "data_type": f"TYPE_{datatype_of(spec.dtype)}", "dims": _open_shape(spec)}
            for spec in self.inputs
        ]
        outputs = [
            {"name": output, "data_type": f"TYPE_{datatype}", "dims": list(row)}
            for output, (datatype, row) in self.outputs.items()
        ]
        return {
            "name": name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": max_rows,
            "input": inputs,
            "output": outputs,
            "instance_group": [{"name": f"{name}_0", "kind": "KIND_AUTO", "count": 1}],
            "dynamic_batching": {"priority_levels": priorities, "default_priority_level": (priorities + 1) // 2},
            "model_transaction_policy": {"decoupled": False},
            "parameters": {} if raw is None else {"raw_inputs": {"string_value": raw}},
        }

    def check_inputs(self, call: InferCall) -> dict[str, np.ndarray]:
        """Returns the inputs of a call by name, as the network takes them; shapes are left to the runtime.

        Raises:
            InputError: an input is missing, unknown, there twice, or of another datatype.
        """
        known = self._datatypes
        found: dict[str, np.ndarray] = {}
        for tensor in call.inputs:
            if tensor.name not in known:
                raise InputError(f"unexpected inference input '{tensor.name}'; this model takes {', '.join(known)}")
            if tensor.name in found:
                raise InputError(f"input '{tensor.name}' is there twice")
            if tensor.datatype != known[tensor.name]:
                raise InputError(
                    f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but the model expects "
                    f"'{known[tensor.name]}'"
                )
            found[tensor.name] = tensor.values
        if len(found) < len(known):
            missing = [name for name in known if name not in found]
            raise InputError(f"expected {len(known)} inputs, and {missing} are missing")
        return found

    def choose_outputs(self, call: InferCall) -> tuple[WantedOutput, ...]:
        """Returns the outputs that a call asks for, all where it names none.

        Raises:
            InputError: there is no such output, or one is named twice.
        """
        if call.outputs is None:
            return self._all_outputs[call.binary]
        names = [wanted.name for wanted in call.outputs]
        for name in names:
            if name not in self.outputs:
                raise InputError(f"unexpected inference output '{name}'; this model has {', '.join(self.outputs)}")
        if len(set(names)) < len(names):
            raise InputError(f"an output is asked for twice: {', '.join(names)}")
        return call.outputs

    def collect(self, answers: Answers, wanted: Sequence[WantedOutput]) -> list[OutputTensor]:
        """Returns the tensors of an answer.

        Raises:
            InputError: an output cannot be classified.
        """
        arrays = dict(zip(self.outputs, (*answers.outputs, answers.exit_index, answers.confidence), strict=True))
        found = []
        for output in wanted:
            datatype, values = self.outputs[output.name][0], arrays[output.name]
            if output.classes:
                own = list(self.outputs).index(output.name) < self._network_outputs
                datatype, values = BYTES, classify(values, output.classes, self._labels if own else ())
            found.append(OutputTensor(output.name, datatype, values, output.binary, output.region))
        if answers.rows is not None:
            found.append(OutputTensor(_free_name(_ROWS, list(self.outputs)), "INT64", answers.rows, binary=True))
        return found


def _metadata_of(name: str, datatype: str, row_shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *row_shape]}


def _open_shape(spec: TensorSpec) -> list[int]:
    """Returns the shape of a row, with -1 for what is as long as the rows of a request are."""
    return [-1 if axis in spec.length_axes else size for axis, size in enumerate(spec.row_shape)]


def _free_name(name: str, taken: Sequence[str]) -> str:
    return f"pame_{name}" if name in taken else name
