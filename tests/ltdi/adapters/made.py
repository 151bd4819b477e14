"""Small random base models with a small vocabulary, and bundles of adapters for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ltdi.adapters.base import BaseModel
from ltdi.adapters.bundle import AdapterBundle
from ltdi.adapters.parts import AdapterBundleConfig, AdapterParts, BaseConfig
from ltdi.adapters.predictor import Predictor
from ltdi.adapters.predictors import build_predictor
from ltdi.torchvision_ops import declare_missing

WORDS = [
    "my", "card", "is", "gone", "where", "the", "money", "parcel", "refund", "please", "late", "balance", "a", "b", "c",
    "not", "good", "bad", "very", "film",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 0}
KINDS = ("bert", "roberta", "llama", "qwen2")
TEXTS = ["my card is gone", "card gone", "where is the money", "money please", "a very good film", "bad film not good"]
LABELS = ["card", "card", "refund", "refund", "film", "film"]
PAIRS = [("my card", "card is gone"), ("a film", "good film"), ("money please", "very bad"), ("late parcel", "not good")]


def transformers():
    """The library, or a skipped test."""
    declare_missing()
    return pytest.importorskip("transformers", reason="the extra `lora` is not installed")


def tokenizer(words: list[str] = WORDS):
    """Words and special tokens; a text is `[CLS] a [SEP]`, a pair `[CLS] a [SEP] b [SEP]`."""
    library = transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return library.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def random_model(kind: str, ways: int = 2, **changes: object) -> nn.Module:
    """A sequence classification model with fixed random weights, large enough that its answers differ."""
    library = transformers()
    name = {"bert": "Bert", "roberta": "Roberta", "llama": "Llama", "qwen2": "Qwen2"}[kind]
    sizes = SIZES | {"vocab_size": len(SPECIAL) + len(WORDS), "num_labels": ways} | changes
    if kind in ("llama", "qwen2"):
        sizes["num_key_value_heads"] = 2
    model = getattr(library, f"{name}ForSequenceClassification")(getattr(library, f"{name}Config")(**sizes))
    torch.manual_seed(0)  # the head is the last, so that its size changes nothing else
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def write_base(folder: Path, kind: str = "bert", **changes: object) -> Path:
    """A base model in a folder, as `transformers` saves it: the plain encoder, without a head."""
    model = random_model(kind, **changes)
    model.base_model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def random_parts(base: BaseModel, r: int, directions: int, *, size: float = 0.2) -> AdapterParts:
    """LoRA matrices of a fixed seed."""
    dice = torch.Generator().manual_seed(1)
    modules, saved = base.target.modules, base.target.saved

    def draw(*shape: int) -> torch.Tensor:
        return size * torch.randn(*shape, generator=dice)

    return AdapterParts(
        {m.path: draw(r, m.inputs) for m in modules}, {m.path: draw(m.outputs, r) for m in modules},
        {m.path: draw(directions, m.outputs, r) for m in modules}, {t.name: draw(*t.shape) for t in saved},
    )  # fmt: skip


def make_adapter_bundle(
    base: BaseModel, model: str = "base", *, directions: int = 0, predictor: Predictor | None = None, **changes: object
) -> AdapterBundle:
    """A bundle whose LoRA does change answers."""
    settings = {"name": "toy-lora", "r": 4, "lora_alpha": 8.0, "base_model_name_or_path": "made/tiny", "directions": directions} | changes
    config = AdapterBundleConfig(body=BaseConfig(model, base.max_tokens), target=base.target, **settings)
    chosen = predictor or build_predictor(config.predictor, config.space)
    return AdapterBundle(config, base, random_parts(base, config.r, directions), chosen)


def in_memory(kind: str, **names: object) -> BaseModel:
    """A base model of a random model."""
    return BaseModel.of(random_model(kind), tokenizer(), 16, **names)
