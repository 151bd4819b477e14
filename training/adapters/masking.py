"""Which tokens of an encoder are words, and what a word that is left out becomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ltdi.bodies.adapted import Tokens

MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Masking:
    """Args:
    token: that stands for a word; None where the vocabulary has none, and nothing is left out.
    first_word: numbers below it are no words.
    """

    token: int | None = 103
    first_word: int = 1000


BERT = Masking()  # whose first thousand tokens are special, unused, or single characters


def masking_of(folder: Path) -> Masking:
    """Of the tokenizer in a model's folder: `BERT`, or words behind all special tokens but the mask."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    mask = next((number for number in map(tokenizer.token_to_id, MASKS) if number is not None), None)
    if mask == BERT.token:
        return BERT
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special and number != mask]
    return Masking(mask, 1 + max(special, default=-1))


def dropped(tokens: Tokens, share: float, draw: torch.Generator, masking: Masking = BERT) -> Tokens:
    """Words replaced by the mask with probability `share`."""
    if masking.token is None:
        return tokens
    chosen = (torch.rand(tokens.ids.shape, generator=draw) < share) & (tokens.ids >= masking.first_word)
    return replace(tokens, ids=torch.where(chosen, masking.token, tokens.ids))
