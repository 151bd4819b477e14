"""A BERT or RoBERTa encoder whose query and value projections carry LoRA adapters, one adapter for each task of a batch.

It reads a Hugging Face folder (`config.json`, `model.safetensors`, `tokenizer.json`) and needs neither transformers
nor PEFT: generating an adapter takes forward passes of the encoder under several adapters at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.errors import UnsupportedInput
from ltdi.files import read_safetensors

POOLER = ("pooler.dense.weight", "pooler.dense.bias")
GRID = 4  # padded lengths are multiples of it
PREFIXES = ("bert.", "roberta.")
AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")  # positions count from the padding token's number on


@dataclass(frozen=True)
class Tokens:
    """Texts as the encoder reads them: `ids`, `kinds` (1 in the second text of a pair) and `mask`, each `[M, L]`, padded at the end."""

    ids: Tensor
    kinds: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> Tokens:
        """Some rows, cut to the longest of them."""
        mask = self.mask[rows]
        longest = max(int(mask.sum(1).max()), 1)
        longest = min(-(-longest // GRID) * GRID, mask.shape[1])
        return Tokens(self.ids[rows, :longest], self.kinds[rows, :longest], mask[:, :longest])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Target:
    """Sizes of the adapters of an encoder: layers, D, rank; `scale` is lora_alpha / r."""

    layers: int
    size: int
    rank: int = 8
    scale: float = 2.0


class AdaptedBert:
    """A frozen BERT or RoBERTa with adapters given at each call.

    Args:
        config: of the model's folder.
        weights: the model's tensors by BertModel's names, float32; RoBERTa's `classifier.dense` is the pooler.
        lora_a: `[layers, 2, rank, D]`, shared by all adapters: query's and value's.
        scale: lora_alpha / r.
    """

    def __init__(self, config: dict, weights: dict[str, Tensor], lora_a: Tensor, scale: float = 2.0) -> None:
        if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedInput("the encoder is no plain BERT or RoBERTa: it needs gelu and absolute positions")
        self.first = config["pad_token_id"] + 1 if config.get("model_type") in AFTER_PADDING else 0  # position
        self.layers, self.size = config["num_hidden_layers"], config["hidden_size"]
        self.heads, self.eps = config["num_attention_heads"], config["layer_norm_eps"]
        if lora_a.shape[0] != self.layers or lora_a.shape[-1] != self.size:
            raise UnsupportedInput(
                f"adapters are for {lora_a.shape[0]} layers of {lora_a.shape[-1]}; "
                f"the encoder has {self.layers} of {self.size}"
            )
        self.weights, self.lora_a, self.scale = weights, lora_a, scale
        self.target = Target(self.layers, self.size, lora_a.shape[2], scale)

    def hidden(self, tokens: Tokens, lora_b: Tensor | None = None, each: bool = False) -> Tensor | list[Tensor]:
        """Hidden states of the last layer, `[M, L, D]`.

        Args:
            lora_b: `[T, layers, 2, D, rank]`, an adapter for each of T tasks; M is a multiple of T and the rows of
                a task stand together. None is the encoder itself.
            each: return the states after the embedding and after each layer instead, as a list.
        """
        h = self.embed(tokens)
        mask = torch.zeros(tokens.mask.shape, dtype=h.dtype).masked_fill_(tokens.mask == 0, -1e4)[:, None, None, :]
        states = [h]
        for i in range(self.layers):
            h = self._layer(h, i, mask, None if lora_b is None else lora_b[:, i])
            states.append(h)
        return states if each else h

    def embed(self, tokens: Tokens) -> Tensor:
        """The embedding layer's output, `[M, L, D]`."""
        w, length = self.weights, tokens.ids.shape[1]
        kinds = w["embeddings.token_type_embeddings.weight"]
        h = F.embedding(tokens.ids, w["embeddings.word_embeddings.weight"])
        h = h + w["embeddings.position_embeddings.weight"][self.first : self.first + length]
        h = h + F.embedding(tokens.kinds.clamp_max(len(kinds) - 1), kinds)
        return self._norm(h, "embeddings.LayerNorm")

    def pooler(self, first: Tensor) -> Tensor:
        """BERT's pooler, or RoBERTa's `classifier.dense`, on the hidden states of the first token, `[M, D]`."""
        return torch.tanh(F.linear(first, self.weights["pooler.dense.weight"], self.weights["pooler.dense.bias"]))

    def _layer(self, h: Tensor, i: int, mask: Tensor, lora_b: Tensor | None) -> Tensor:
        name = f"encoder.layer.{i}"
        query, key, value = (self._linear(h, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        if lora_b is not None:
            query = query + self._low_rank(h, i, 0, lora_b)
            value = value + self._low_rank(h, i, 1, lora_b)
        batch, length, _ = h.shape
        query, key, value = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        h = self._norm(h + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = F.gelu(self._linear(h, f"{name}.intermediate.dense"))
        return self._norm(h + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _low_rank(self, h: Tensor, i: int, module: int, lora_b: Tensor) -> Tensor:
        """scale B A h, by each row's own B."""
        small = F.linear(h, self.lora_a[i, module]).view(len(lora_b), -1, self.lora_a.shape[2])
        return torch.bmm(small, lora_b[:, module].transpose(1, 2) * self.scale).view(h.shape)

    def _linear(self, h: Tensor, name: str) -> Tensor:
        return F.linear(h, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, (self.size,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.eps)


def load_weights(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """`config.json` and the tensors of a BERT or RoBERTa folder, by BertModel's names, float32.

    A RoBERTa without a pooler gets one that changes nothing before its tanh.

    Raises:
        DamagedFile: the weights cannot be read.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors, _ = read_safetensors(folder / "model.safetensors", "encoder")
    own = {_bare(name): tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    if config.get("model_type") in AFTER_PADDING and POOLER[0] not in own:
        own |= dict(zip(POOLER, (torch.eye(config["hidden_size"]), torch.zeros(config["hidden_size"])), strict=True))
    return config, own


def _bare(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over a text's tokens, `[M, D]`."""
    mask = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def tokenize(folder: Path, texts: Sequence[str], seconds: Sequence[str] | None = None, most: int = 64) -> Tokens:
    """Texts, or pairs of texts, as tokens; what is beyond `most` tokens is cut, the longer text of a pair first.

    Where the tokenizer does not mark the second texts, as RoBERTa's, `kinds` does.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(most, strategy="longest_first")
    tokenizer.enable_padding(pad_to_multiple_of=GRID)
    read = tokenizer.encode_batch(list(texts) if seconds is None else list(zip(texts, seconds, strict=True)))
    ids, kinds, mask = (torch.tensor([getattr(one, part) for one in read]) for part in ("ids", "type_ids", "attention_mask"))
    if seconds is not None and not kinds.any():
        kinds = torch.tensor([[int(text == 1) for text in one.sequence_ids] for one in read])
    return Tokens(ids, kinds, mask)
