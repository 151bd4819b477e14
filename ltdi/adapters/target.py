"""What an adapter is made for: a base model's facts, the modules that get LoRA, and its classification head."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ltdi.errors import ForeignBase, InvalidConfig

QUERY_AND_VALUE = (("query", "value"), ("q_proj", "v_proj"))  # encoders like BERT, decoders like Llama
HEADS = ("classifier.out_proj", "classifier", "score")  # the last layer, by architecture


@dataclass(frozen=True)
class LoraModule:
    """A linear layer that gets LoRA.

    Args:
        path: its name in the model.
        inputs, outputs: its sizes: `lora_A` is `[r, inputs]`, `lora_B` `[outputs, r]`.
    """

    path: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that an adapter holds whole, as it is no part of the base model."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BaseFacts:
    """What tells one base model from another.

    Args:
        architecture: the class with the head, as `transformers` names it.
        vocabulary_digest: of the tokens and their numbers, see `vocabulary_digest`; not compared where empty.
        weights_digest: SHA-256 of the weight files; not compared where empty.
    """

    architecture: str
    hidden_size: int
    layers: int
    vocabulary_size: int
    vocabulary_digest: str = ""
    weights_digest: str = ""

    def check(self, found: BaseFacts) -> None:
        """Hold another model's facts against these.

        Raises:
            ForeignBase: the first thing in which it differs.
        """
        for name, words in FACTS:
            own, other = getattr(self, name), getattr(found, name)
            if own and other and own != other:
                short = (str(value)[:12] if "digest" in name else value for value in (other, own))
                raise ForeignBase(
                    "the base model has {} {}; this was made for {}".format(words, *short), field="base_model"
                )


FACTS = (
    ("architecture", "the architecture"), ("hidden_size", "hidden size"), ("layers", "a number of layers of"),
    ("vocabulary_size", "a vocabulary of size"), ("vocabulary_digest", "the vocabulary digest"),
    ("weights_digest", "the weights digest"),
)  # fmt: skip


@dataclass(frozen=True)
class LoraTarget:
    """Which tensors an adapter of a base model holds.

    Args:
        base: the facts of the model.
        modules: layers with LoRA, in the model's order.
        target_modules: the shortest names that mean exactly these for PEFT.
        head: the last layer, whose rows are the classes: `classifier`, `classifier.out_proj` or `score`.
        head_inputs: D, the size of the features it sees.
        head_bias: whether it has a bias.
        modules_to_save: modules that PEFT takes whole, the one with the head among them.
        saved: tensors of these other than the head's own.
    """

    base: BaseFacts
    modules: tuple[LoraModule, ...]
    target_modules: tuple[str, ...]
    head: str
    head_inputs: int
    head_bias: bool
    modules_to_save: tuple[str, ...]
    saved: tuple[SavedTensor, ...] = ()

    def shapes(self, r: int, ways: int) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of an adapter by its name in the model: what PEFT's files hold, without their prefix."""
        shapes: dict[str, tuple[int, ...]] = {}
        for module in self.modules:
            shapes[f"{module.path}.lora_A.weight"] = (r, module.inputs)
            shapes[f"{module.path}.lora_B.weight"] = (module.outputs, r)
        shapes |= {tensor.name: tensor.shape for tensor in self.saved}
        shapes[f"{self.head}.weight"] = (ways, self.head_inputs)
        if self.head_bias:
            shapes[f"{self.head}.bias"] = (ways,)
        return shapes


def describe_target(
    model: nn.Module, tokenizer: Any = None, *, target_modules: Sequence[str] | None = None,
    saved_modules: Sequence[str] = (), weights_digest: str = "",
) -> LoraTarget:
    """The target of a sequence classification model of `transformers`.

    Args:
        tokenizer: of the model; without it the vocabulary is known by its size alone.
        target_modules: ends of names, or whole names, of linear layers; query and value where absent.
        saved_modules: further modules that adapters hold whole, such as `pooler`.

    Raises:
        InvalidConfig: no such layers, or no head that is one linear layer.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    head = next((name for name in HEADS if name in linear), None)
    if head is None:
        raise InvalidConfig(f"{type(model).__name__} has no last layer named {', '.join(HEADS)}", field="base_model")
    wanted = tuple(target_modules) if target_modules else _query_and_value(linear, type(model).__name__)
    found = [name for name in linear if any(_means(name, end) for end in wanted)]
    for end in wanted:
        if not any(_means(name, end) for name in found):
            raise InvalidConfig(f"no linear layer of {type(model).__name__} is named {end!r}", field="target_modules")
    modules = tuple(LoraModule(name, linear[name].in_features, linear[name].out_features) for name in found)
    whole = (head.split(".")[0], *saved_modules)
    own = {f"{head}.weight", f"{head}.bias"}
    saved = tuple(
        SavedTensor(name, tuple(value.shape)) for name, value in model.named_parameters()
        if name not in own and any(_means(part, end) for part in _parents(name) for end in whole)
    )  # fmt: skip
    return LoraTarget(
        facts_of(model.config, type(model).__name__, None if tokenizer is None else tokenizer.get_vocab(), weights_digest),
        modules, wanted, head, linear[head].in_features, linear[head].bias is not None, whole, saved,
    )


def facts_of(
    config: Any, architecture: str, vocabulary: Mapping[str, int] | None, weights_digest: str = ""
) -> BaseFacts:
    """The facts of a model from its `transformers` config and its tokens."""
    return BaseFacts(
        architecture, config.hidden_size, config.num_hidden_layers, config.vocab_size,
        "" if vocabulary is None else vocabulary_digest(vocabulary), weights_digest,
    )


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of tokens and numbers in order of number: the same whichever file they were read from."""
    rows = sorted((number, token) for token, number in vocabulary.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _query_and_value(linear: Mapping[str, nn.Linear], model: str) -> tuple[str, ...]:
    for pair in QUERY_AND_VALUE:
        if all(any(_means(name, end) for name in linear) for end in pair):
            return pair
    raise InvalidConfig(f"{model} has no layers named query and value, or q_proj and v_proj; name target_modules",
                        field="target_modules")


def _means(name: str, end: str) -> bool:
    """Whether PEFT takes `end` in `target_modules` to mean the module `name`."""
    return name == end or name.endswith(f".{end}")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
