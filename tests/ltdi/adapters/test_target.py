"""Which tensors an adapter holds, by base model, and how a foreign one is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from ltdi.adapters import describe_target
from ltdi.adapters.target import vocabulary_digest
from ltdi.errors import ForeignBase, InvalidConfig
from tests.ltdi.adapters.made import KINDS, WORDS, random_model, tokenizer

ENCODER = "{}.encoder.layer.{}.attention.self.{}.lora_{}.weight"
DECODER = "model.layers.{}.self_attn.{}_proj.lora_{}.weight"


def encoder_keys(name: str) -> dict:
    return {
        ENCODER.format(name, layer, part, matrix): (4, 32) if matrix == "A" else (32, 4)
        for layer in range(2) for part in ("query", "value") for matrix in "AB"
    }  # fmt: skip


def decoder_keys() -> dict:
    """Grouped-query attention: two of four heads for values, so that their B is half as high."""
    return {
        DECODER.format(layer, part, matrix): (4, 32) if matrix == "A" else ({"q": 32, "v": 16}[part], 4)
        for layer in range(2) for part in "qv" for matrix in "AB"
    }  # fmt: skip


GOLDEN = {
    "bert": encoder_keys("bert") | {"classifier.weight": (3, 32), "classifier.bias": (3,)},
    "roberta": encoder_keys("roberta") | {
        "classifier.dense.weight": (32, 32), "classifier.dense.bias": (32,),
        "classifier.out_proj.weight": (3, 32), "classifier.out_proj.bias": (3,),
    },
    "llama": decoder_keys() | {"score.weight": (3, 32)},
    "qwen2": decoder_keys() | {"score.weight": (3, 32)},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_are_those_of_peft(kind: str) -> None:
    target = describe_target(random_model(kind), tokenizer())
    assert target.shapes(r=4, ways=3) == GOLDEN[kind]
    assert target.target_modules == (("query", "value") if kind in ("bert", "roberta") else ("q_proj", "v_proj"))
    assert target.modules_to_save == (("score",) if kind in ("llama", "qwen2") else ("classifier",))


def test_other_modules_and_a_pooler_by_name() -> None:
    target = describe_target(random_model("bert"), target_modules=["bert.encoder.layer.1.attention.self.key"], saved_modules=["pooler"])
    assert [module.path for module in target.modules] == ["bert.encoder.layer.1.attention.self.key"]
    assert target.modules_to_save == ("classifier", "pooler")
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} == {tensor.name for tensor in target.saved}


def test_a_model_without_a_head_and_a_misspelt_module_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="no last layer named"):
        describe_target(nn.Linear(2, 2))
    with pytest.raises(InvalidConfig, match="named 'qery'"):
        describe_target(random_model("bert"), target_modules=["qery"])


FOREIGN = [
    ("hidden_size", 64, "hidden size 64; this was made for 32"),
    ("layers", 12, "a number of layers of 12; this was made for 2"),
    ("vocabulary_size", 99, "a vocabulary of size 99; this was made for 24"),
    ("vocabulary_digest", "f" * 64, "the vocabulary digest ffffffffffff; this was made for"),
    ("weights_digest", "f" * 64, "the weights digest ffffffffffff; this was made for aaaaaaaaaaaa"),
    ("architecture", "RobertaForSequenceClassification", "the architecture RobertaForSequenceClassification"),
]


@pytest.mark.parametrize(("name", "value", "words"), FOREIGN, ids=[row[0] for row in FOREIGN])
def test_a_foreign_base_is_told_by_its_first_difference(name: str, value: object, words: str) -> None:
    own = describe_target(random_model("bert"), tokenizer(), weights_digest="a" * 64).base
    own.check(own)
    own.check(replace(own, weights_digest=""))
    with pytest.raises(ForeignBase, match=words):
        own.check(replace(own, **{name: value}))


def test_the_vocabulary_digest_is_of_tokens_and_numbers() -> None:
    words = tokenizer().get_vocab()
    assert vocabulary_digest(words) == vocabulary_digest(dict(reversed(words.items())))
    assert vocabulary_digest(words) != vocabulary_digest(tokenizer(["our", *WORDS[1:]]).get_vocab())
    assert vocabulary_digest(words) != vocabulary_digest(tokenizer(WORDS[::-1]).get_vocab())
