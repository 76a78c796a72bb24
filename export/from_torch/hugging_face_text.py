"""Text classifiers of Hugging Face: encoders of tokens with their tokenizer, at one length of a row."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import InputError, TensorSpec, UsageError
from export.folder.texts import find_text_source
from export.from_torch.hugging_face_loading import load_classifier
from export.from_torch.modules import TorchNetwork
from export.options import LENGTH, ExportOptions

_TOKENS = ("input_ids", "attention_mask")
_TYPES = "token_type_ids"


def read_text_network(
    folder: Path, config: Mapping[str, Any], options: ExportOptions, *, classes: tuple[str, ...]
) -> TorchNetwork:  # fmt: skip
    """Loads the text classifier of a folder.

    Raises:
        UsageError: a shape was given, or more tokens than it has places for.
        InputError: it answers with a number, or not all of it is there.
    """
    if options.input_shapes:
        raise UsageError(f"--input-shape: {options.source} takes rows of tokens; say how many with --length TOKENS")
    if int(config.get("num_labels") or len(config.get("id2label") or {}) or 2) < 2:
        raise InputError(
            f"{folder} answers with one number and no spread, from which no confidence follows. Train a regression of "
            "the family bert instead: python -m export bert --task regression --weights DIR"
        )
    length, most = options.length or LENGTH, int(config.get("max_position_embeddings") or 0)
    if most and length > most:
        raise UsageError(f"--length {length}: {options.source} has places for {most} tokens")
    classifier = load_classifier(
        folder, "AutoModelForSequenceClassification", "a text classifier", attn_implementation="eager"
    )
    names = [*_TOKENS, *([_TYPES] if _takes_types(classifier, config) else [])]
    specs = [TensorSpec(name=name, dtype="int64", row_shape=(length,)) for name in names]
    return TorchNetwork(
        module=_Logits(classifier, names),
        examples=tuple(torch.ones(2, length, dtype=torch.int64) for _ in names),
        input_names=names,
        output_names=["logits"],
        classes=classes,
        text=find_text_source(options.tokenizer, (folder,), specs),
    )


def _takes_types(classifier: nn.Module, config: Mapping[str, Any]) -> bool:
    return _TYPES in inspect.signature(classifier.forward).parameters and int(config.get("type_vocab_size") or 0) > 1


class _Logits(nn.Module):
    """The classifier with its logits alone as answer: rows of tokens (B, S) -> (B, classes)."""

    def __init__(self, classifier: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.classifier = classifier
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Tensor = self.classifier(**dict(zip(self.names, inputs, strict=True))).logits
        return answer
