"""A bundle that makes adapters: shared `lora_A`, a mean and directions of `lora_B`, a predictor, and a closed form's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.adapter import PREFIX, Adapter, check_ranks
from ltdi.adapters.base import BaseModel
from ltdi.adapters.closed_form import HeadConfig
from ltdi.adapters.generate import generate_adapter
from ltdi.adapters.predictor import Evidence, Predictor
from ltdi.adapters.target import LoraTarget
from ltdi.bundle import HeadRequest
from ltdi.config import to_json
from ltdi.errors import DamagedFile, InvalidInput, UnsupportedInput
from ltdi.files import digest, write_bytes, write_json, write_safetensors
from ltdi.heads import is_text
from ltdi.pipeline import OnStage, Options, Timer
from ltdi.support import Items, Limits, SupportSet

FORMAT, FORMAT_VERSION = "ltdi.adapters", 1
CONFIG, WEIGHTS, DIGEST, CARD = "bundle.json", "weights.safetensors", "digest", "card.json"
MAX_NAME = 1000  # characters of `base_model_name_or_path`


@dataclass(frozen=True)
class BaseConfig:
    """The base model.

    Args:
        model: `all-MiniLM-L6-v2`; a path; or a path from the bundle's folder.
        max_tokens: how many tokens of an item it reads.
        name: what kind of body that is.
    """

    model: str
    max_tokens: int = 128
    name: str = "transformer"


@dataclass(frozen=True)
class AdapterBundleConfig:
    """What a bundle of adapters is; stored with it.

    Args:
        base_model_name_or_path: what adapters call their base model where the caller does not say.
        r: rank.
        lora_alpha: W x becomes W x + lora_alpha / r B A x.
        head: how the head is fitted on adapted features.
        baseline_head: the same on those of the plain base, for the baseline.
        predictor: a key of `predictor.PREDICTORS`.
        directions: K.
        fallback_margin: by how much the baseline must lead on the folds to be returned instead.
    """

    name: str
    body: BaseConfig
    target: LoraTarget
    base_model_name_or_path: str
    r: int
    lora_alpha: float
    head: HeadConfig = HeadConfig()
    baseline_head: HeadConfig = HeadConfig()
    predictor: str = "mean"
    directions: int = 0
    limits: Limits = Limits(64, 100, 1000, 0)
    fallback_margin: float = 0.1
    recipe: str = "lora"
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_ranks(self.r, self.lora_alpha)


@dataclass(frozen=True, eq=False)
class AdapterParts:
    """The tensors of a bundle of adapters, by module.

    Args:
        lora_a: `[r, in]`, shared by all adapters.
        mean: `[out, r]`, the adapter at coefficients 0.
        directions: `[K, out, r]`.
        saved: tensors that every adapter holds whole, by name, such as RoBERTa's `classifier.dense.weight`.
    """

    lora_a: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    directions: Mapping[str, Tensor]
    saved: Mapping[str, Tensor] = field(default_factory=dict)

    def at(self, coefficients: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """`lora_A` and `lora_B` of each module for coefficients `[K]`."""
        made = {}
        for path, mean in self.mean.items():
            b = mean + torch.einsum("k,kor->or", coefficients, self.directions[path]) if len(coefficients) else mean
            made[path] = (self.lora_a[path], b.contiguous())
        return made

    def plain(self) -> dict[str, tuple[Tensor, Tensor]]:
        """An adapter without effect: `lora_B` is 0."""
        return {path: (self.lora_a[path], torch.zeros_like(mean)) for path, mean in self.mean.items()}

    def check(self, config: AdapterBundleConfig) -> None:
        """Hold names and shapes to the config.

        Raises:
            DamagedFile: a tensor too many, too few, or of another shape or type.
        """
        r, wanted = config.r, {module.path: module for module in config.target.modules}
        for what, found in (("lora_A", self.lora_a), ("mean", self.mean), ("basis", self.directions)):
            if set(found) != set(wanted):
                raise DamagedFile(f"the bundle's {what} is of {len(found)} modules; the target has {len(wanted)} others")
            for path, tensor in found.items():
                module = wanted[path]
                shape = {"lora_A": (r, module.inputs), "mean": (module.outputs, r),
                         "basis": (config.directions, module.outputs, r)}[what]  # fmt: skip
                _check_tensor(f"{what}.{path}", tensor, shape)
        if set(self.saved) != {tensor.name for tensor in config.target.saved}:
            raise DamagedFile(f"the bundle saves {sorted(self.saved)[:5]}; its target names others")
        for tensor in config.target.saved:
            _check_tensor(f"saved.{tensor.name}", self.saved[tensor.name], tensor.shape)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise DamagedFile(f"the bundle's {name!r} is {list(tensor.shape)} {tensor.dtype}; expected {list(shape)} float32")


class AdapterBundle:
    """Makes LoRA adapters of a base model; read it with `load_bundle`.

    Where a service asks what a bundle is, it answers as `Bundle` does.

    Args:
        body: the base model, which `config.target` describes.
        predictor: chooses coefficients; its parameters are stored with the bundle.
    """

    kind = "lora"
    input_kinds = ("texts", "pairs")
    takes_descriptions = takes_a_body = False
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
        """A checked task: at least one example of each class.

        Raises:
            InvalidInput: any of its subclasses, with the field and the remedy.
        """
        for name, value in (("descriptions", descriptions), ("unlabelled", unlabelled)):
            if value is not None and len(value):
                raise UnsupportedInput(f"bundle {self.name!r} does not use {name}; leave them out", field=name)
        return SupportSet.of(self.prepare(inputs, truncate=truncate), labels, classes=classes, limits=self.limits)

    def too_long(self, support: SupportSet) -> int:
        """How many items of a task are longer than the base model reads, and are cut."""
        return self.body.too_long(support.inputs)  # type: ignore[arg-type]

    def generate(
        self, inputs: Any, labels: Sequence[str], *, seed: int = 0, classes: Sequence[str] | None = None,
        check: bool = True, fallback: str = "baseline", truncate: bool = False,
        base_model_name_or_path: str | None = None, on_stage: OnStage | None = None,
    ) -> Adapter:
        """The adapter of a task.

        Args:
            inputs: texts, or pairs of texts, one for each label.
            classes: the order of the head's rows; sorted labels where absent.
            check: measure accuracy on folds. That the adapter loads and answers alike is checked always.
            fallback: `baseline` returns the plain base with the closed form's head where the folds say that it is
                clearly better; `none` never.
            truncate: cut items that are too long instead of refusing them.
            base_model_name_or_path: written into the adapter; the bundle's own where absent.
            on_stage: told the seconds of `embed`, `sample` and `check`.

        Raises:
            InvalidInput: what is wrong with the task.
            BodyMissing, ForeignBase, DamagedFile: what is wrong with the base model.
            GenerationFailed: the adapter did not pass its check.
        """
        support = self.support(inputs, labels, classes=classes, truncate=truncate)
        options = Options(seed=seed, check=check, fallback=fallback)
        request = HeadRequest(support, options, truncate=truncate, base_model_name_or_path=base_model_name_or_path)
        return self.generate_many([request], on_stage=on_stage)[0]

    def generate_many(self, requests: Sequence[HeadRequest], *, on_stage: OnStage | None = None) -> list[Adapter]:
        """Adapters of many tasks, one after the other; raises as `generate` does."""
        for request in requests:
            _check_request(request)
        return [generate_adapter(self, request, Timer(on_stage)) for request in requests]

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

    def coefficients(self, evidence: Evidence) -> Tensor:
        """What the predictor says, `[K]`."""
        return self.predictor(evidence)

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
