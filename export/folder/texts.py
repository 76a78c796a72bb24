"""TextSource: how a network of tokens wants its texts, with the tokenizer that goes into its model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import (
    TOKENIZER_JSON,
    InputError,
    Model,
    TensorSpec,
    TextPreprocessing,
    UsageError,
    file_digest,
    name_token_inputs,
    open_tokenizer,
    to_plain,
)

EXPORT_PREFIX = "export."
"""How the names of a manifest's inputs begin that the export itself had; trained heads have others."""
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """How a network wants its texts.

    Attributes:
        wanted: the steps, as ``model.json`` records them.
        tokenizer: the file that they need.
    """

    wanted: TextPreprocessing
    tokenizer: Path

    def record(self) -> dict[str, Any]:
        """Returns what a manifest's parameters say of it."""
        return {"text": to_plain(self.wanted)}

    def digests(self) -> dict[str, str]:
        """Returns what a manifest's inputs say of it."""
        return {f"{EXPORT_PREFIX}tokenizer": file_digest(self.tokenizer)}

    def copy_into(self, staging: Path) -> None:
        """Puts the tokenizer into a staging folder."""
        shutil.copyfile(self.tokenizer, staging / self.wanted.tokenizer)

    def check_vocabulary(self, config: Any) -> None:
        """Refuses a tokenizer whose tokens a network does not know.

        Raises:
            InputError: it has more tokens than the option ``vocabulary``.
        """
        size = open_tokenizer(self.tokenizer).get_vocab_size(with_added_tokens=True)
        if size > config.vocabulary:
            raise InputError(
                f"{self.tokenizer} knows {size} tokens and the network {config.vocabulary}; they do not belong "
                "together. Name the network's own with --tokenizer FILE"
            )


def find_text_source(
    asked: str | None, folders: Sequence[Path], inputs: Sequence[TensorSpec]
) -> TextSource | None:  # fmt: skip
    """Returns how a network wants its texts: by the tokenizer that was asked for, or the one beside it.

    Args:
        asked: ``--tokenizer``; ``None``: the first ``tokenizer.json`` of the folders.
        folders: beside the network.
        inputs: of the network.

    Returns:
        ``None`` where it takes no tokens, or no tokenizer is there.

    Raises:
        UsageError: a tokenizer was asked for, and the network takes something else.
        InputError: the file is no tokenizer.
    """
    named = name_token_inputs([spec.name for spec in inputs])
    rows = {spec.row_shape for spec in inputs}
    whole = all(spec.dtype.startswith(("int", "uint")) for spec in inputs) and len(rows) == 1
    if named is None or not whole or len(next(iter(rows))) != 1:
        if asked is not None:
            described = ", ".join(f"{spec.name} {spec.dtype} {spec.row_shape}" for spec in inputs)
            raise UsageError(
                f"--tokenizer {asked}: the network takes {described}; expected rows of integers called input_ids, and "
                "where it has them attention_mask and token_type_ids"
            )
        return None
    file = find_tokenizer(asked, folders)
    if file is None:
        return None
    (length,) = next(iter(rows))
    return TextSource(
        wanted=TextPreprocessing(length=length, pad_id=_find_pad(file), **named), tokenizer=file
    )  # fmt: skip


def find_tokenizer(asked: str | None, folders: Sequence[Path]) -> Path | None:
    """Returns the tokenizer that was asked for, or the first beside a network; ``None``: there is none.

    Raises:
        UsageError: the one that was asked for does not exist.
    """
    if asked is not None:
        if not Path(asked).is_file():
            raise UsageError(f"--tokenizer {asked}: there is no such file; it is called {TOKENIZER_JSON}")
        return Path(asked)
    return next((folder / TOKENIZER_JSON for folder in folders if (folder / TOKENIZER_JSON).is_file()), None)


def kept_text_source(model: Model) -> TextSource | None:
    """Returns how the network of a model folder wants its texts, as the folder holds it."""
    text = model.spec.text
    return None if text is None else TextSource(wanted=text, tokenizer=model.artifact.path(text.tokenizer))


def _find_pad(file: Path) -> int:
    """Returns the token that a tokenizer fills rows up with."""
    tokenizer = open_tokenizer(file)
    stated = json.loads(file.read_text(encoding="utf-8")).get("padding")
    if isinstance(stated, dict) and isinstance(stated.get("pad_id"), int):
        return int(stated["pad_id"])
    for name in _PADS:
        if (found := tokenizer.token_to_id(name)) is not None:
            return int(found)
    raise InputError(
        f"{file}: nothing says which token fills rows up; expected 'padding' with a pad_id in it, or one of the tokens "
        f"{', '.join(_PADS)}"
    )
