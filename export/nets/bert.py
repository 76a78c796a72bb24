"""The ``bert`` family: encoders of tokens, of any depth and width.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019
(arXiv:1810.04805), in its usual form: absolute positions, layer normalisation behind every addition, exact GELU. An
exit may sit after every layer but the last. The mask is turned once into what attention scores are raised by, which is
what the cuts carry and the heads read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from artifacts import Cut, GraphError, TensorSpec, UsageError, unknown_name
from export.nets.bert_files import open_bert
from export.nets.family import Backbone, Family
from export.nets.table import TOKEN_HEAD_KINDS
from export.nets.token_heads import MEAN, MaskTensor, MeanHead, TokenHead

BIAS = "attention_bias"
"""The tensor that cuts carry: 0 at a token, ``_HIDDEN`` at what fills up."""
_HIDDEN = -1e4  # far below any attention score, and within half precision
_DROPOUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Which BERT.

    Attributes:
        classes: number of classes; of a regression 2, the value and its spread.
        length: tokens of a row.
        layers, width, heads, inner: of the encoder; ``inner`` is the width between the two layers behind attention.
        vocabulary, positions, kinds: rows of the three embeddings; with one kind there are no ``token_type_ids``.
        pooling: how the final head reads the last layer, one of ``TOKEN_HEAD_KINDS``.
        epsilon: of layer normalisation.
    """

    classes: int = field(default=2, metadata={"help": "number of classes; of a regression 2, a value and its spread"})
    length: int = 64
    layers: int = field(default=6, metadata={"help": "layers; with --weights as the weights have them, like the rest"})
    width: int = field(default=384, metadata={"help": "width of a token's features"})
    heads: int = field(default=12, metadata={"help": "attention heads"})
    inner: int = field(default=1536, metadata={"help": "width between the two layers behind attention"})
    vocabulary: int = field(default=30522, metadata={"help": "tokens that are known"})
    positions: int = field(default=512, metadata={"help": "the longest row that the network could take"})
    kinds: int = field(default=2, metadata={"help": "kinds of tokens; 2 for pairs of texts"})
    pooling: str = field(
        default=MEAN, metadata={"help": f"how the final head reads the last layer: {' or '.join(TOKEN_HEAD_KINDS)}"}
    )
    epsilon: float = field(default=1e-12, metadata={"help": "of layer normalisation"})

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "inner", "vocabulary", "positions", "kinds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected a number from 1")
        if self.classes < 2:
            raise UsageError(f"--classes {self.classes}: expected at least 2 (a regression has a value and its spread)")
        if self.width % self.heads:
            raise UsageError(f"--width {self.width} with --heads {self.heads}: the heads must divide the width")
        if not 3 <= self.length <= self.positions:
            raise UsageError(
                f"--length {self.length}: expected 3 to {self.positions}, which the network has places for"
            )
        if self.pooling not in TOKEN_HEAD_KINDS:
            raise unknown_name("--pooling", self.pooling, TOKEN_HEAD_KINDS)

    @property
    def mask(self) -> MaskTensor:
        """The tensor from which heads read what is a token."""
        return MaskTensor(name=BIAS, row_shape=(1, 1, self.length), limit=_HIDDEN / 2)


def token_inputs(config: BertConfig) -> tuple[TensorSpec, ...]:
    """Returns the inputs that a BERT takes: int64 rows of ``length`` each."""
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if config.kinds > 1 else []))
    return tuple(TensorSpec(name=name, dtype="int64", row_shape=(config.length,)) for name in names)


class Embeddings(nn.Module):
    """Tokens, their places and kinds as features: (B, S) twice -> (B, S, width)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.positions, config.width)
        self.kinds = nn.Embedding(config.kinds, config.width)
        self.norm = nn.LayerNorm(config.width, config.epsilon)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, ids: Tensor, kinds: Tensor | None) -> Tensor:
        own = self.kinds.weight[0] if kinds is None else self.kinds(kinds)
        x: Tensor = self.dropout(self.norm(self.words(ids) + own + self.places.weight[: ids.shape[1]]))
        return x


class Layer(nn.Module):
    """Self-attention and two linear layers, each around a shortcut: (B, S, width) and the bias -> (B, S, width)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.gathered = nn.Linear(config.width, config.width)
        self.gathered_norm = nn.LayerNorm(config.width, config.epsilon)
        self.widened = nn.Linear(config.width, config.inner)
        self.narrowed = nn.Linear(config.inner, config.width)
        self.narrowed_norm = nn.LayerNorm(config.width, config.epsilon)
        self.dropout = nn.Dropout(_DROPOUT)

    def _split(self, x: Tensor) -> Tensor:
        parts: Tensor = x.unflatten(-1, (self.heads, -1))
        return parts.transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        shares = self.dropout(torch.softmax(scores + bias, dim=-1))
        gathered = (shares @ value).transpose(1, 2).flatten(2)
        x = self.gathered_norm(x + self.dropout(self.gathered(gathered)))
        inner = self.narrowed(nn.functional.gelu(self.widened(x)))
        y: Tensor = self.narrowed_norm(x + self.dropout(inner))
        return y


class Bert(Backbone):
    """An encoder with a final head, that also returns its features after every layer.

    Shapes: inputs (B, S) int64, as ``token_inputs``; output (B, classes) float32 logits.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = build_final_head(config)
        self.apply(_initialise)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields every layer under its parameter prefix, e.g. ``layer.2``."""
        for place, layer in enumerate(self.layer):
            yield f"layer.{place}", layer

    def forward_with_features(self, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (layer name -> features after it, and the bias under its name; logits).

        In training, columns behind the longest text of the batch are left out: no answer depends on them.
        """
        if self.training:
            longest = int(inputs[1].any(dim=0).nonzero().max()) + 1
            inputs = tuple(array[:, :longest] for array in inputs)
        ids, mask = inputs[:2]
        bias = ((1 - mask.to(torch.float32)) * _HIDDEN)[:, None, None, :]
        features = {BIAS: bias}
        x = self.embeddings(ids, inputs[2] if len(inputs) > 2 else None)
        for name, layer in self.blocks():
            x = layer(x, bias)
            features[name] = x
        return features, self.head(x, bias) if isinstance(self.head, MeanHead) else self.head(x)


def build_final_head(config: BertConfig) -> nn.Module:
    """Builds the untrained final head."""
    if config.pooling == MEAN:
        return MeanHead(config.width, config.classes, config.mask)
    return TokenHead(config.width, config.classes)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def build_token_head(cut: Cut, later: tuple[Cut, ...], *, classes: int, kind: str) -> nn.Module:  # noqa: ARG001
    """Builds the untrained exit head of a cut; arguments as ``export.nets.heads.build_head``."""
    width = cut.main.row_shape[-1]
    head: nn.Module
    if kind == MEAN:
        carried = next((spec for spec in cut.carried if spec.name == BIAS), None)
        if carried is None:
            raise GraphError(f"cut '{cut.name}' does not carry '{BIAS}', which the head '{MEAN}' reads")
        mask = MaskTensor(name=BIAS, row_shape=carried.row_shape, dtype=carried.dtype, limit=_HIDDEN / 2)
        head = MeanHead(width, classes, mask)
    else:
        head = TokenHead(width, classes)
    return head.apply(_initialise)


FAMILY = Family(
    name="bert",
    config=BertConfig,
    build=Bert,
    title=lambda config: f"BERT {config.layers} x {config.width}",
    build_head=build_token_head,
    inputs=token_inputs,
    head_kinds=TOKEN_HEAD_KINDS,
    open_weights=open_bert,
    reads_text=True,
)
