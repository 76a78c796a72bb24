"""TextPreprocessing: how a network of tokens wants its texts; part of ``model.json`` and of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.errors import InputError

TOKENIZER_JSON = "tokenizer.json"
TOKEN_INPUTS = {
    "ids": ("input_ids", "ids", "tokens", "token_ids"),
    "mask": ("attention_mask", "input_mask", "mask"),
    "types": ("token_type_ids", "segment_ids", "type_ids"),
}
"""What an input of tokens holds -> the names under which networks take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPreprocessing:
    """The steps from a text, or a pair of texts, to one row of each input of a network of tokens.

    The tokenizer of the network itself cuts the text into tokens and adds those that mark its beginning and its end;
    what is longer than ``length`` tokens is cut off, of a pair from the longer text first; what is shorter is filled up
    with ``pad_id`` behind, where the mask is 0.

    Attributes:
        length: tokens of a row.
        ids: the input that takes the tokens.
        mask: the input that is 1 at a token and 0 at what fills up; ``None``: the network has none.
        types: the input that is 0 in the first text and 1 in the second; ``None``: the network has none.
        pad_id: the token that fills up.
        tokenizer: its file, beside the one that holds this.
    """

    length: int
    ids: str
    mask: str | None = None
    types: str | None = None
    pad_id: int = 0
    tokenizer: str = TOKENIZER_JSON

    def __post_init__(self) -> None:
        if self.length < 3:
            raise InputError(f"text preprocessing: rows of {self.length} tokens; expected at least 3")
        if self.pad_id < 0:
            raise InputError(f"text preprocessing: pad_id {self.pad_id}; expected a token from 0")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that texts become."""
        return tuple(name for name in (self.ids, self.mask, self.types) if name is not None)

    def describe(self) -> str:
        """Returns the steps in words, for people."""
        return f"cut into tokens by {self.tokenizer}, at most {self.length} of them"


def name_token_inputs(names: Sequence[str]) -> dict[str, str] | None:
    """Returns which of a network's inputs are ``ids``, ``mask`` and ``types``; ``None``: it takes other things.

    Args:
        names: of all its inputs.
    """
    found = {}
    for what, known in TOKEN_INPUTS.items():
        fitting = [name for name in names if name.lower().rpartition("/")[2] in known]
        if len(fitting) == 1:
            found[what] = fitting[0]
    return found if "ids" in found and len(found) == len(names) else None
