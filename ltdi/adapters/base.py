"""The base model of adapters: texts and pairs of texts to the features that its last layer sees, with and without LoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ltdi.adapters.applied import applied
from ltdi.adapters.imports import prepare_imports, quiet, reason_of
from ltdi.adapters.items import Texts, check_items, columns, size_of
from ltdi.adapters.quick import first_token, is_float32, merged, pays, quick_copy
from ltdi.adapters.target import LoraTarget, describe_target, facts_of
from ltdi.bodies.ruler import load_ruler, refuse_long
from ltdi.bodies.sentence import model_folder, weights_digest
from ltdi.errors import BodyMissing, DamagedBase, ForeignBase

REMEDY = "install it with `pip install 'ltdi[text,lora]'`, or put it where the bundle names it"
BATCH = 8  # items of like length, so that little is padded
ADDED = 4  # tokens that a model adds to an item, at most; any other has a byte at least


@dataclass(frozen=True)
class Batches:
    """Tokens of items, in batches of like length.

    Args:
        parts: what the model takes, batch by batch.
        places: `[M]`, where each item is in what the batches give, one after the other.
    """

    parts: tuple[dict[str, Tensor], ...]
    places: Tensor


class BaseModel(nn.Module):
    """A sequence classification model of `transformers` without its last layer; loaded when it is first needed.

    Args:
        model: `all-MiniLM-L6-v2`, or the path of a folder.
        max_tokens: how many tokens of an item it reads.
        target: what it must be; None takes whatever lies there.
        target_modules, saved_modules: as for `describe_target`, where `target` is None.
    """

    kind = "text"
    remote = False

    def __init__(
        self, model: str, max_tokens: int = 128, target: LoraTarget | None = None, *,
        target_modules: Sequence[str] | None = None, saved_modules: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model_name, self.max_tokens, self._wanted = model, max_tokens, target
        self._target_modules, self._saved_modules = target_modules, saved_modules
        self._device = torch.device("cpu")
        self._loaded: nn.Module | None = None
        self._quick: nn.Module | None = None
        self._one = RLock()  # LoRA is put into the model that all threads share
        self._found: LoraTarget | None = target
        self._given_tokenizer: Any = None

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, max_tokens: int = 128, **names: Any) -> BaseModel:
        """A base model that is in memory: a sequence classification model and its tokenizer.

        Args:
            names: `target_modules` and `saved_modules`, as for `describe_target`.
        """
        made = cls(type(model).__name__, max_tokens)
        made._given_tokenizer = tokenizer
        made._take(model, describe_target(model, tokenizer, **names))
        return made

    def to(self, device: str | torch.device) -> BaseModel:  # type: ignore[override]
        """Where it will compute."""
        self._device = torch.device(device)
        self._quick = None
        if self._loaded is not None:
            self._loaded.to(self._device)
        return self

    @property
    def installed(self) -> bool:
        """Whether texts can be read: `transformers` is there, and so is the model."""
        return find_spec("transformers") is not None and (self._loaded is not None or model_folder(self.model_name) is not None)

    @property
    def feature_size(self) -> int:
        """D, what the last layer sees."""
        return self.target.head_inputs

    @property
    def target(self) -> LoraTarget:
        """What an adapter of it holds; read from the model where no bundle has said so."""
        if self._found is None:
            self._load()
        assert self._found is not None
        return self._found

    @property
    def model(self) -> nn.Module:
        """The model, its last layer an identity, so that its logits are features.

        Raises:
            BodyMissing: `transformers` or the model is not installed.
            DamagedBase: its files cannot be used.
            ForeignBase: it is another than wanted.
        """
        if self._loaded is None:
            self._load()
        assert self._loaded is not None
        return self._loaded

    @property
    def quick(self) -> nn.Module:
        """The model with bfloat16 products where those are quicker, else the model itself."""
        model = self.model
        if self._quick is None:
            saved = {tensor.name.rpartition(".")[0] for tensor in self.target.saved}
            self._quick = quick_copy(model, saved) if pays(self._device) and is_float32(model) else model
        return self._quick

    def check(self) -> None:
        """Have it loaded; raises as `model` does."""
        _ = self.model

    @torch.inference_mode(False)  # its parameters are to be used outside of it too
    def _load(self) -> None:
        folder = self._folder()
        prepare_imports()
        from transformers import AutoConfig, AutoModelForSequenceClassification

        digest = weights_digest(folder)
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=2)
            kind = AutoModelForSequenceClassification._model_mapping[type(config)].__name__
            vocabulary = self.tokenizer.get_vocab()
            if config.get_text_config().pad_token_id is None:
                config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
            if self._wanted is not None:
                self._wanted.base.check(facts_of(config.get_text_config(), kind, vocabulary, digest))
            with quiet():
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
                )
        except SafetensorError as error:
            raise DamagedBase(f"the base model {folder.name!r} has damaged weights: {reason_of(error, folder)}") from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise DamagedBase(f"the base model {folder.name!r} cannot be loaded: {reason_of(error, folder)}") from error
        target = describe_target(
            model, self.tokenizer, weights_digest=digest,
            target_modules=self._wanted.target_modules if self._wanted else self._target_modules,
            saved_modules=self._wanted.modules_to_save[1:] if self._wanted else self._saved_modules,
        )
        _check_whole(model, info, target, folder.name)
        if self._wanted is not None and replace(target, base=self._wanted.base) != self._wanted:
            raise ForeignBase("the base model has other layers or another head than this was made for", field="base_model")
        self._take(model, target)

    def _take(self, model: nn.Module, target: LoraTarget) -> None:
        parent, _, name = target.head.rpartition(".")
        model = copy.deepcopy(model, {id(p): p for p in (*model.parameters(), *model.buffers())})
        setattr(model.get_submodule(parent) if parent else model, name, nn.Identity())
        self._loaded, self._quick = model.eval().to(self._device), None
        self._found = target

    def _folder(self) -> Path:
        folder = model_folder(self.model_name)
        if find_spec("transformers") is None or folder is None:
            raise BodyMissing(f"the base model {Path(self.model_name).name!r} is not installed; {REMEDY}")
        return folder

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; one without a padding token pads with its end of text."""
        tokenizer = self._given_tokenizer
        if tokenizer is None:
            folder = self._folder()
            prepare_imports()
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            except Exception as error:  # the library of tokenizers raises no narrower one
                raise DamagedBase(f"the tokenizer of {folder.name!r} cannot be loaded: {reason_of(error, folder)}") from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def prepare(self, items: Texts, field: str, truncate: bool = False) -> tuple[str | tuple[str, str], ...]:
        """Texts, or pairs of texts, that the model can read.

        Raises:
            InvalidText: no string, empty, no pair, or longer than it reads (unless `truncate`).
        """
        checked = check_items(items, field)
        if not truncate:
            refuse_long(self._long(checked), self.max_tokens, field)
        return checked

    def too_long(self, items: Texts) -> int:
        """How many items are cut."""
        return len(self._long(items))

    def _long(self, items: Texts) -> list[tuple[int, int]]:
        """Place and tokens of the items that are longer than it reads."""
        maybe = [i for i, item in enumerate(items) if size_of(item) > self.max_tokens - ADDED]
        if not maybe:
            return []
        lengths = self._lengths([items[i] for i in maybe])
        return [(i, length) for i, length in zip(maybe, lengths, strict=True) if length > self.max_tokens]

    def _lengths(self, items: Texts) -> list[int]:
        """Tokens of each item, with those that the model adds."""
        if self._ruler is not None:
            return [len(encoding.ids) for encoding in self._ruler.encode_batch(list(items))]
        return [len(ids) for ids in self.tokenizer(*columns(items), truncation=False, verbose=False)["input_ids"]]

    @cached_property
    def _ruler(self) -> Any:
        """The tokenizer by itself, so that items are measured without `transformers`; None where it has no such file."""
        folder = None if self._given_tokenizer is not None else model_folder(self.model_name)
        try:
            return load_ruler(folder)
        except Exception as error:  # the library raises no narrower one
            raise DamagedBase(f"the tokenizer of {folder.name!r} cannot be loaded: {reason_of(error, folder)}") from error

    def tokens(self, items: Texts) -> dict[str, Tensor]:
        """What the model takes of items: a batch, padded to its longest, cut at `max_tokens`."""
        return dict(
            self.tokenizer(
                *columns(items), truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
            ).to(self._device)
        )

    def batches(self, items: Texts) -> Batches:
        """Items as tokens, to be read more than once."""
        lengths = self._lengths(items) if items else []
        order = sorted(range(len(items)), key=lambda i: -lengths[i])
        parts = (self.tokens([items[i] for i in order[start : start + BATCH]]) for start in range(0, len(order), BATCH))
        return Batches(tuple(parts), torch.argsort(torch.tensor(order, dtype=torch.long)))

    @torch.inference_mode()
    def features(
        self, items: Texts | Batches, lora: Mapping[str, tuple[Tensor, Tensor]] | None = None, scale: float = 1.0,
        whole: Mapping[str, Tensor] | None = None, quick: bool = False,
    ) -> Tensor:  # fmt: skip
        """Features `[M, D]` of items, float32, on the CPU; those of like length go together.

        Args:
            lora, scale, whole: as for `applied`; the plain model where absent.
            quick: by `quick_copy`, two or three digits of each number, where that is quicker.
        """
        model, lora, whole = self.quick if quick else self.model, lora or {}, whole or {}
        with self._one, ExitStack() as changed:
            if model is self.model:
                changed.enter_context(applied(model, lora, scale, whole))
            else:
                changed.enter_context(first_token(model))
                changed.enter_context(merged(model, lora, scale))
                changed.enter_context(applied(model, {}, scale, whole))
            return self._each(items, lambda batch: model(**batch).logits, self.feature_size)

    @torch.inference_mode()
    def pooled(self, items: Texts | Batches) -> Tensor:
        """Mean over tokens of the last hidden states, `[M, hidden size]`, on the CPU: what sentence encoders give; by `quick`."""

        def mean(batch: dict[str, Tensor]) -> Tensor:
            hidden = self.quick.base_model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden)
            return (hidden * mask).sum(1) / mask.sum(1)

        with self._one:
            return self._each(items, mean, self.target.base.hidden_size)

    def _each(self, items: Texts | Batches, answer: Callable[[dict[str, Tensor]], Tensor], size: int) -> Tensor:
        """Answers to the batches, `[M, size]`, in the items' order."""
        batches = items if isinstance(items, Batches) else self.batches(items)
        if not batches.parts:
            return torch.zeros(0, size)
        return torch.cat([answer(batch).float().cpu() for batch in batches.parts])[batches.places]

    def with_head(self, ways: int) -> nn.Module:
        """The whole model with a fresh last layer of so many rows, its other tensors shared: what `transformers` would load."""
        model = copy.deepcopy(self.model, {id(p): p for p in (*self.model.parameters(), *self.model.buffers())})
        parent, _, name = self.target.head.rpartition(".")
        layer = nn.Linear(self.target.head_inputs, ways, bias=self.target.head_bias)
        setattr(model.get_submodule(parent) if parent else model, name, layer)
        model.config.num_labels = model.num_labels = ways
        return model.to(self._device).eval()


def _check_whole(model: nn.Module, info: Mapping[str, Any], target: LoraTarget, name: str) -> None:
    """Refuse a model whose files lack more than what adapters bring, or hold NaN."""
    brought = {f"{target.head}.weight", f"{target.head}.bias", *(tensor.name for tensor in target.saved)}
    lacking = sorted(set(info["missing_keys"]) - brought)
    if lacking or info.get("mismatched_keys"):
        what = lacking or sorted(map(str, info["mismatched_keys"]))
        raise DamagedBase(f"the base model {name!r} lacks tensors, {what[0]!r:.120} among {len(what)}")
    for tensor, value in model.named_parameters():
        if tensor not in brought and not bool(torch.isfinite(value).all()):
            raise DamagedBase(f"the base model {name!r} holds NaN or infinity in {tensor!r}")
