"""Features of text sets under several encoders, kept on disk, so that a set is embedded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.bodies.sentence import SentenceBody
from ltdi.files import read_safetensors, write_safetensors
from training.data.texts import OUTSIDE, TextSet

MINILM, MINILM_SIZE = "all-MiniLM-L6-v2", 384
MIDDLE_LAYER = 3
SVD_SIZE = 256
SHARED = ("minilm", "minilm-middle")  # the others are fitted on each set, so that sets share no space


@dataclass(frozen=True)
class FeatureSet:
    """A labelled set as features of unit length.

    Args:
        name: of the set.
        encoder: that made them.
        features: `[M, D]`.
        class_index: `[M]`, the class of each, -1 for those of none, -2 for classes that tasks do not hold.
        train, test: `[M]`, boolean.
        classes: labels, by class index.
        names, raw_names: `[N, D]`, of the classes' names and of their labels; None for sets without names.
    """

    name: str
    encoder: str
    features: Tensor
    class_index: Tensor
    train: Tensor
    test: Tensor
    classes: tuple[str, ...]
    names: Tensor | None = None
    raw_names: Tensor | None = None

    @cached_property
    def train_rows(self) -> list[np.ndarray]:
        """The training items of each class."""
        index = torch.where(self.train, self.class_index, -3).numpy()
        return [np.nonzero(index == row)[0] for row in range(len(self.classes))]


Encode = Callable[[Sequence[str]], Tensor]


def embedded(texts: TextSet, encoder: str, cache: Path, encode: Encode | None = None) -> FeatureSet:
    """A set under an encoder, from the cache where it lies there.

    Args:
        encode: texts to `[M, D]`, where the encoder is not one of `ENCODE`.
    """
    key = hashlib.sha256("\n".join([encoder, *texts.texts, *texts.names.values()]).encode()).hexdigest()[:12]
    path = cache / f"{texts.name}-{encoder}-{key}.safetensors"
    if not path.exists():
        apply = encode or ENCODE[encoder](texts.texts)
        raw = texts.raw_names
        tensors = {
            "features": apply(texts.texts),
            "names": apply(list(texts.names.values())),
            "raw_names": apply(list(raw.values())),
        }
        cache.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {k: F.normalize(v.float().cpu(), dim=1) for k, v in tensors.items()}, {})
    tensors, _ = read_safetensors(path, "feature cache")
    classes = tuple(texts.names)
    place = {label: row for row, label in enumerate(classes)} | dict.fromkeys(OUTSIDE, -1)
    return FeatureSet(
        texts.name, encoder, tensors["features"], torch.tensor([place.get(label, -2) for label in texts.labels]),
        torch.tensor([part == "train" for part in texts.parts]), torch.tensor([part == "test" for part in texts.parts]),
        classes, tensors["names"], tensors["raw_names"],
    )


def _minilm(texts: Sequence[str]) -> Encode:
    return SentenceBody(MINILM, MINILM_SIZE).embed


def _minilm_middle(texts: Sequence[str]) -> Encode:
    """Mean-pooled hidden states after the third of MiniLM's six layers."""
    encoder = SentenceBody(MINILM, MINILM_SIZE).encoder
    transformer, tokenizer = encoder[0].auto_model, encoder.tokenizer

    @torch.inference_mode()
    def encode(items: Sequence[str]) -> Tensor:
        found = torch.zeros(len(items), MINILM_SIZE)
        order = sorted(range(len(items)), key=lambda i: len(items[i]))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = tokenizer([items[i] for i in rows], padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden = transformer(**batch, output_hidden_states=True).hidden_states[MIDDLE_LAYER]
            mask = batch["attention_mask"].unsqueeze(-1)
            found[rows] = (hidden * mask).sum(1) / mask.sum(1)
        return found

    return encode


def _tfidf(texts: Sequence[str]) -> Encode:
    """Word TF-IDF with a truncated SVD, fitted on the texts of the set themselves, without their labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return _reduced(TfidfVectorizer(sublinear_tf=True, min_df=2), texts)


def _ngrams(texts: Sequence[str]) -> Encode:
    """Hashed character n-grams with a truncated SVD, likewise: the kind of encoder that no training sees."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return _reduced(HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=2**16), texts)


def _reduced(vectorizer: object, texts: Sequence[str]) -> Encode:
    from sklearn.decomposition import TruncatedSVD

    counts = vectorizer.fit_transform(texts)  # type: ignore[attr-defined]
    svd = TruncatedSVD(min(SVD_SIZE, min(counts.shape) - 1), random_state=0).fit(counts)
    return lambda items: torch.from_numpy(svd.transform(vectorizer.transform(items)))  # type: ignore[attr-defined]


ENCODE: dict[str, Callable[[Sequence[str]], Encode]] = {
    "minilm": _minilm, "minilm-middle": _minilm_middle, "tfidf": _tfidf, "ngrams": _ngrams
}  # fmt: skip
