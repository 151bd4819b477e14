"""A BERT of two layers with random weights, by BertModel's names."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.bodies.adapted import AdaptedBert, Tokens

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32,
    "layer_norm_eps": 1e-12, "vocab_size": 1100, "max_position_embeddings": 20, "type_vocab_size": 2,
}  # fmt: skip


def tiny_weights(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    d, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], d),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        parts = {"attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d),
                 "attention.output.dense": (d, d), "intermediate.dense": (inner, d), "output.dense": (d, inner)}  # fmt: skip
        for name, (out, size) in parts.items():
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = (out, size), (out,)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    weights = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(d), torch.zeros(d)
    return weights


def tiny_bert(rank: int = 2, kind: type[AdaptedBert] = AdaptedBert) -> AdaptedBert:
    a = torch.randn(2, 2, rank, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(1)) * 0.3
    return kind(CONFIG, tiny_weights(), a)


def tiny_tokens(rows: int, length: int = 8, seed: int = 0) -> Tokens:
    """Random tokens, every other row two shorter."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1::2, -2:] = 0
    ids = torch.randint(1000, CONFIG["vocab_size"], (rows, length), generator=draw) * mask
    return Tokens(ids, torch.zeros_like(ids), mask)
