"""A small BERT with a tokenizer, and labelled sentences that it can learn, for the tests of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from export.nets.bert import BertConfig

GOOD, BAD = ("fine", "bright", "warm", "clever"), ("dull", "cold", "weak", "tired")
PLAIN = ("the", "a", "film", "plot", "actor", "scene", "ends", "runs", "with", "and", "here", "there")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, *PLAIN, *GOOD, *BAD)
LENGTH = 12
CONFIG = BertConfig(
    length=LENGTH, layers=3, width=16, heads=2, inner=32, vocabulary=len(WORDS), positions=32, classes=2
)
FLAGS = ["--layers", "3", "--width", "16", "--heads", "2", "--inner", "32", "--vocabulary", str(len(WORDS)),
         "--positions", "32", "--length", str(LENGTH)]  # fmt: skip


def write_tokenizer(folder: Path) -> Path:
    """Writes a ``tokenizer.json`` that knows ``WORDS``."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def make_sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Returns sentences with one, two or three telling words, and whether most of these are good."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        telling = [str(random.choice(GOOD if label else BAD)) for _ in range(int(random.integers(1, 3)))]
        if len(telling) > 1 and random.random() < 0.5:
            telling.append(str(random.choice(BAD if label else GOOD)))
        words = [str(word) for word in random.choice(PLAIN, int(random.integers(1, 6)))] + telling
        rows.append((" ".join(random.permutation(words)), label))
    return rows


def write_sentences(folder: Path, *, train: int = 384, dev: int = 160, test: int = 96) -> Path:
    """Writes ``train.tsv``, ``dev.tsv`` and ``test.tsv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((("train", train), ("dev", dev), ("test", test))):
        lines = [f"{text}\t{label}" for text, label in make_sentences(count, seed)]
        (folder / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    return folder
