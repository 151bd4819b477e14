"""A bundle that makes adapters: shared `lora_A`, a mean and directions of `lora_B`, a predictor, and a closed form's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.adapter import PREFIX, Adapter
from ltdi.adapters.base import BaseModel
from ltdi.adapters.generate import generate_adapter
from ltdi.adapters.parts import FORMAT, AdapterBundleConfig, AdapterParts
from ltdi.adapters.predictor import Predictor
from ltdi.bundle import HeadRequest
from ltdi.config import to_json
from ltdi.errors import DamagedFile, InvalidInput, InvalidSupport, InvalidText, UnsupportedInput
from ltdi.files import digest, write_bytes, write_json, write_safetensors
from ltdi.heads import is_text
from ltdi.pipeline import OnStage, Options, Timer
from ltdi.support import Items, SupportSet

CONFIG, WEIGHTS, DIGEST, CARD = "bundle.json", "weights.safetensors", "digest", "card.json"
MAX_NAME = 1000  # characters of `base_model_name_or_path`


class AdapterBundle:
    """Makes LoRA adapters of a base model; read it with `load_bundle`.

    Where a service asks what a bundle is, it answers as `Bundle` does.

    Args:
        body: the base model, which `config.target` describes.
        predictor: chooses coefficients; its parameters are stored with the bundle.
    """

    kind = "lora"
    input_kinds = ("texts", "pairs")
    takes_descriptions = takes_pool = takes_a_body = False  # no description stands for examples here; it stands for a name
    fixed_ways = None

    def __init__(
        self, config: AdapterBundleConfig, body: BaseModel, parts: AdapterParts, predictor: Predictor, *,
        digest: str = "", card: dict | None = None, device: str | torch.device = "cpu",
    ) -> None:
        parts.check(config)
        self.config, self.parts, self.digest, self.card = config, parts, digest, card or {}
        self.device = torch.device(device)
        self.body = body.to(self.device)
        self.predictor = predictor.eval().requires_grad_(False)

    name = property(lambda self: self.config.name, doc="The bundle's name.")
    limits = property(lambda self: self.config.limits, doc="What it takes in one task.")
    feature_size = property(lambda self: self.config.target.head_inputs, doc="D, what the head sees.")

    def prepare(self, inputs: Any, *, field: str = "support", truncate: bool = False) -> Items:
        """Texts, or pairs of texts, in the one form that digests and the base model see.

        Raises:
            InvalidText: what is wrong with them.
            UnsupportedInput: something else: an adapter changes the base model, so that features cannot be sent.
        """
        if isinstance(inputs, str | Tensor) or not isinstance(inputs, Sequence):
            raise UnsupportedInput(f"bundle {self.name!r} takes a list of texts, or of pairs of texts", field=field)
        return self.body.prepare(inputs, field, truncate)  # type: ignore[return-value]

    def support(
        self, inputs: Any = (), labels: Sequence[str] = (), *, classes: Sequence[str] | None = None,
        descriptions: Mapping[str, Any] | None = None, unlabelled: Any = None, truncate: bool = False,
    ) -> SupportSet:
        """A checked task: at least one example of each class; a description is read in place of the class's name.

        Raises:
            InvalidInput: any of its subclasses, with the field and the remedy.
        """
        if unlabelled is not None and len(unlabelled):
            raise UnsupportedInput(f"bundle {self.name!r} does not use unlabelled; leave them out", field="unlabelled")
        described = self._described(descriptions or {}, truncate)
        made = SupportSet.of(
            self.prepare(inputs, truncate=truncate), labels, classes=classes, descriptions=described, limits=self.limits
        )
        if lacking := sorted(set(made.classes) - set(made.labels)):
            raise InvalidSupport(f"class {lacking[0]!r} has no example; an adapter needs at least one of each", field="support")
        return made

    def _described(self, descriptions: Mapping[str, Any], truncate: bool) -> dict[str, Any] | None:
        if not isinstance(descriptions, Mapping) or any(not isinstance(text, str) for text in descriptions.values()):
            raise UnsupportedInput(f"bundle {self.name!r} takes descriptions as texts by label", field="descriptions")
        for label, text in descriptions.items():
            try:
                self.body.prepare([text], "descriptions", truncate)
            except InvalidText as error:
                raise InvalidText(str(error), field=f"descriptions/{label}") from error
        return dict(descriptions) or None

    def too_long(self, support: SupportSet) -> int:
        """How many items and descriptions of a task are longer than the base model reads, and are cut."""
        described = tuple((support.descriptions or {}).values())
        return self.body.too_long(support.inputs) + self.body.too_long(described)  # type: ignore[arg-type]

    def generate(
        self, inputs: Any, labels: Sequence[str], *, seed: int = 0, classes: Sequence[str] | None = None,
        descriptions: Mapping[str, str] | None = None, check: bool = True, fallback: str = "baseline", truncate: bool = False,
        base_model_name_or_path: str | None = None, on_stage: OnStage | None = None,
    ) -> Adapter:
        """The adapter of a task.

        Args:
            inputs: texts, or pairs of texts, one for each label.
            classes: the order of the head's rows; sorted labels where absent.
            descriptions: what a class is, by its label, read in place of the label: for labels that say nothing.
            check: measure accuracy on folds. That the adapter loads and answers alike is checked always.
            fallback: `baseline` returns the bundle's baseline (the plain base or the mean adapter) with the closed form's head where
                the folds say that it is clearly better; `none` never.
            truncate: cut items that are too long instead of refusing them.
            base_model_name_or_path: written into the adapter; the bundle's own where absent.
            on_stage: told the seconds of `embed`, `sample` and `check`.

        Raises:
            InvalidInput: what is wrong with the task.
            BodyMissing, ForeignBase, DamagedBase: what is wrong with the base model.
            GenerationFailed: the adapter did not pass its check.
        """
        support = self.support(inputs, labels, classes=classes, descriptions=descriptions, truncate=truncate)
        options = Options(seed=seed, check=check, fallback=fallback)
        request = HeadRequest(support, options, truncate=truncate, base_model_name_or_path=base_model_name_or_path)
        return self.generate_many([request], on_stage=on_stage)[0]

    def generate_many(
        self, requests: Sequence[HeadRequest], *, on_stage: OnStage | None = None, until: float = inf
    ) -> list[Adapter]:
        """Adapters of many tasks, one after the other; raises as `generate` does.

        Args:
            until: `time.monotonic()` at which no further pass over the texts is begun.

        Raises:
            DeadlinePassed: it came before the adapters were made.
        """
        for request in requests:
            _check_request(request)
        return [generate_adapter(self, request, Timer(on_stage), until) for request in requests]

    def adapter(
        self, lora: Mapping[str, tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor | None, labels: Sequence[str],
        base_model_name_or_path: str | None, metadata: Mapping[str, Any],
    ) -> Adapter:
        """An adapter of this bundle's target from its parts, under PEFT's names."""
        target, tensors = self.config.target, {}
        for path, (a, b) in lora.items():
            tensors |= {f"{PREFIX}{path}.lora_A.weight": a, f"{PREFIX}{path}.lora_B.weight": b}
        tensors |= {PREFIX + name: value for name, value in self.parts.saved.items()}
        tensors[f"{PREFIX}{target.head}.weight"] = weight
        if bias is not None:
            tensors[f"{PREFIX}{target.head}.bias"] = bias
        return Adapter(
            {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()},
            self.config.r, self.config.lora_alpha, target.target_modules, target.modules_to_save, tuple(labels),
            base_model_name_or_path or self.config.base_model_name_or_path, metadata=metadata,
        )  # fmt: skip

    def save(self, folder: str | Path) -> str:
        """Write `bundle.json`, `weights.safetensors`, `digest` and, where there is one, `card.json`; returns the digest."""
        folder, parts = Path(folder), self.parts
        tensors = {f"{kind}.{path}": value for kind, found in (("lora_A", parts.lora_a), ("mean", parts.mean),
                   ("basis", parts.directions), ("saved", parts.saved)) for path, value in found.items()}  # fmt: skip
        tensors |= {f"predictor.{key}": value for key, value in self.predictor.state_dict().items()}
        write_json(folder / CONFIG, to_json(self.config))
        write_safetensors(folder / WEIGHTS, tensors, {"format": FORMAT})
        self.digest = digest_of(folder)
        write_bytes(folder / DIGEST, (self.digest + "\n").encode())
        if self.card:
            write_json(folder / CARD, self.card)
        return self.digest


def digest_of(folder: Path) -> str:
    """SHA-256 of the two files that make the bundle."""
    try:
        return digest(*((folder / name).read_bytes() for name in (CONFIG, WEIGHTS)))
    except OSError as error:
        raise DamagedFile(f"the bundle lacks {CONFIG} or {WEIGHTS}") from error


def _check_request(request: HeadRequest) -> None:
    """Refuse what is said of heads only."""
    if not isinstance(request.task, SupportSet):
        raise UnsupportedInput("an adapter is made from examples, not from a task embedding", field="task_embedding")
    for name in ("draws", "refine_steps"):
        if getattr(request.options, name) != getattr(Options, name):
            raise UnsupportedInput(f"adapters take no {name}; leave it out", field=f"options/{name}")
    base = request.base_model_name_or_path
    if base is not None and (not is_text(base) or not base.strip() or len(base) > MAX_NAME or not base.isprintable()):
        raise InvalidInput(
            f"base_model_name_or_path is {base!r:.60}; it must be a printable name of at most {MAX_NAME} characters",
            field="base_model_name_or_path",
        )
