"""Loading of networks of Hugging Face through transformers: with all of their weights, from a folder, without code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts import InputError, MissingExtraError

_SHOWN = 4


def load_classifier(folder: Path, loader: str, what: str, **settings: Any) -> nn.Module:
    """Loads a network with all of its weights.

    Args:
        folder: as ``save_pretrained`` writes it.
        loader: the class of transformers that loads it.
        what: it is, for messages.
        settings: passed on to transformers.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: the folder does not hold such a network, or not the whole of it.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers", "hf") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        classifier, found = getattr(transformers, loader).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, **settings,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} cannot be loaded as {what}: {error}") from error
    wrong = [
        f"{words} {', '.join(map(str, list(found[key])[:_SHOWN]))}"
        for key, words in (("missing_keys", "it lacks"), ("mismatched_keys", "of another shape are"))
        if found.get(key)
    ]
    if wrong:
        raise InputError(
            f"{folder} does not hold the whole network: {'; '.join(wrong)}. transformers would draw these at random"
        )
    loaded: nn.Module = classifier.eval()
    return loaded
