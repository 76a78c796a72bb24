"""Calls and answers of the Open Inference Protocol, apart from the transport that carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from artifacts import InputError

TENSOR_LIMIT = 64
"""How many inputs, or outputs, a call may name."""
_MOST_MICROSECONDS = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRegion:
    """A part of a registered region of shared memory."""

    name: str
    offset: int
    byte_size: int


ReadRegion = Callable[[SharedRegion], memoryview]
"""Returns the bytes of a region; raises ``InputError`` where there is none."""


@dataclass(slots=True)
class InputTensor:
    """A tensor of a call.

    Attributes:
        name, datatype: as the protocol has them.
        values: of the tensor's shape; an object array of ``bytes`` for ``BYTES``.
    """

    name: str
    datatype: str
    values: np.ndarray


@dataclass(slots=True)
class WantedOutput:
    """An output that a call asks for.

    Attributes:
        name: of the output.
        binary: as bytes behind the JSON head, or as JSON.
        classes: the largest so many values of each row with their places, instead of all values; 0: all.
        region: write it there instead of sending it.
    """

    name: str
    binary: bool
    classes: int = 0
    region: SharedRegion | None = None


@dataclass(slots=True)
class InferCall:
    """A request.

    Attributes:
        call_id: the client's name for it.
        inputs: its tensors.
        outputs: what it asks for; ``None``: all outputs.
        binary: how outputs are sent that it does not list.
        parameters: of the request; unknown ones are ignored.
    """

    inputs: tuple[InputTensor, ...]
    call_id: str = ""
    outputs: tuple[WantedOutput, ...] | None = None
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timeout_ms(self) -> float | None:
        """Its ``timeout``, which is in microseconds; 0 stands for none."""
        microseconds = whole_parameter(self.parameters, "timeout")
        return microseconds / 1e3 if microseconds else None

    @property
    def priority(self) -> int:
        """Its ``priority``; 0 for the default."""
        return whole_parameter(self.parameters, "priority")


@dataclass(slots=True)
class OutputTensor:
    """A tensor of an answer, and how it is sent.

    Attributes:
        name, datatype: as the protocol has them.
        values: of the tensor's shape; an object array of ``bytes`` for ``BYTES``.
        binary: as bytes behind the JSON head, or as JSON.
        region: where it has been written; nothing is sent then.
    """

    name: str
    datatype: str
    values: np.ndarray
    binary: bool
    region: SharedRegion | None = None


@dataclass(slots=True)
class InferAnswer:
    """The answer to a call, or to some of its rows.

    Attributes:
        model: its name.
        version: of the model.
        call_id: as the call has it.
        outputs: its tensors.
        parameters: of the answer.
    """

    model: str
    version: str
    call_id: str
    outputs: list[OutputTensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def whole_parameter(parameters: Mapping[str, Any], name: str, default: int = 0) -> int:
    """Returns a parameter that is a whole number from 0.

    Raises:
        InputError: it is something else.
    """
    value = parameters.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < len(str(_MOST_MICROSECONDS)):
        value = int(value)  # gRPC's clients send what they do not know as text
    if type(value) is not int or not 0 <= value < _MOST_MICROSECONDS:
        raise InputError(f"parameter '{name}' is {str(value)[:100]!r}: expected a whole number from 0")
    return value


def flag_parameter(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """Returns a parameter that is true or false; ``InputError`` where it is something else."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"parameter '{name}' is {str(value)[:100]!r}: expected true or false")
    return value


def region_of(parameters: Mapping[str, Any]) -> SharedRegion | None:
    """Returns the region of shared memory that a tensor's parameters name; ``None`` without one."""
    name = parameters.get("shared_memory_region")
    if name is None:
        return None
    if not isinstance(name, str):
        raise InputError("parameter 'shared_memory_region' is the name of a registered region")
    return SharedRegion(
        name=name,
        offset=whole_parameter(parameters, "shared_memory_offset"),
        byte_size=whole_parameter(parameters, "shared_memory_byte_size"),
    )
