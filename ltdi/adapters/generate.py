"""The story of an adapter: support -> features -> coefficients -> LoRA -> adapted features -> head -> checked adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.check import verify
from ltdi.adapters.closed_form import HeadConfig, fit_head
from ltdi.adapters.predictor import Evidence
from ltdi.pipeline import FEW_FOLDS, MAX_FOLDS, Timer, folds
from ltdi.support import SupportSet, take

if TYPE_CHECKING:
    from ltdi.adapters.adapter import Adapter
    from ltdi.adapters.bundle import AdapterBundle
    from ltdi.bundle import HeadRequest

Lora = Mapping[str, tuple[Tensor, Tensor]]


@torch.inference_mode()
def generate_adapter(bundle: AdapterBundle, request: HeadRequest, timer: Timer) -> Adapter:
    """A checked adapter.

    Raises:
        BodyMissing, ForeignBase, DamagedFile: what is wrong with the base model.
        GenerationFailed: the adapter did not pass its check.
    """
    task, options = request.task, request.options
    assert isinstance(task, SupportSet)
    index = task.canonical.class_index
    items = take(task.inputs, task.canonical.example_order)
    with timer.stage("embed"):
        plain = bundle.body.features(items, whole=bundle.parts.saved)  # [M, D]
    with timer.stage("sample"):
        lora = _lora(bundle, plain, index, task.ways, options.seed)
        seen = _adapted(bundle, items, lora)  # [M, D]
    with timer.stage("check"):
        masks = folds(index, task.ways, MAX_FOLDS if bundle.predictor.constant else FEW_FOLDS) if options.check else []
        accuracy = _accuracy(bundle, items, plain, seen, index, task.ways, masks, options.seed)
        baseline = _held_out(plain, index, task.ways, masks, bundle.config.baseline_head, bundle.config.target.head_bias)
    method = "generated"
    if options.fallback == "baseline" and accuracy is not None and baseline - accuracy > bundle.config.fallback_margin:
        method, lora, seen = "baseline", bundle.parts.plain(), plain
    with timer.stage("sample"):
        config = bundle.config.head if method == "generated" else bundle.config.baseline_head
        weight, bias = fit_head(seen, index, task.ways, config, bundle.config.target.head_bias)
    with timer.stage("check"):
        facts = {
            "model": bundle.name, "bundle_digest": bundle.digest, "body": bundle.config.body.name, "seed": options.seed,
            "support_digest": task.canonical.digest, "method": method, "support_accuracy": accuracy,
            "baseline_support_accuracy": baseline,
        }  # fmt: skip
        rows = task.canonical.restore
        adapter = bundle.adapter(
            lora, weight[rows], None if bias is None else bias[rows], task.classes, request.base_model_name_or_path, facts
        )
        return _proven(bundle, adapter, items, F.linear(seen, weight, bias).argmax(-1) == index)


def _proven(bundle: AdapterBundle, adapter: Adapter, items: tuple, right: Tensor) -> Adapter:
    """The adapter, which says what was checked of it and what it does."""
    checked = verify(adapter, bundle.body, items)
    effect = {
        "delta_norm": float(f"{checked.delta_norm:.4g}"),
        "logit_change": float(f"{checked.logit_change:.3g}"),
        "support_agreement": round(float(right.float().mean()), 4),
    }
    facts = {**adapter.metadata, "checks": list(checked.checks), "effect": effect}
    return replace(adapter, metadata=facts)


def _lora(bundle: AdapterBundle, features: Tensor, index: Tensor, ways: int, seed: int) -> Lora:
    return bundle.parts.at(bundle.coefficients(Evidence(features, index, ways, seed)))


def _adapted(bundle: AdapterBundle, items: tuple, lora: Lora) -> Tensor:
    return bundle.body.features(items, lora, bundle.config.lora_alpha / bundle.config.r, bundle.parts.saved)


def _accuracy(
    bundle: AdapterBundle, items: tuple, plain: Tensor, seen: Tensor, index: Tensor, ways: int, masks: list[Tensor], seed: int
) -> float | None:
    """Share of held-out examples that adapters made without them get right."""
    bias = bundle.config.target.head_bias
    if bundle.predictor.constant or not masks:
        return _held_out(seen, index, ways, masks, bundle.config.head, bias)
    right = total = 0
    for mask in masks:
        kept = ~mask
        features = _adapted(bundle, items, _lora(bundle, plain[kept], index[kept], ways, seed))
        right += _right(features, index, ways, mask, bundle.config.head, bias)
        total += int(mask.sum())
    return right / total


def _held_out(
    features: Tensor, index: Tensor, ways: int, masks: list[Tensor], config: HeadConfig, bias: bool
) -> float | None:
    """Share of held-out examples that heads on fixed features get right; None without folds."""
    if not masks:
        return None
    right = sum(_right(features, index, ways, mask, config, bias) for mask in masks)
    return right / sum(int(mask.sum()) for mask in masks)


def _right(features: Tensor, index: Tensor, ways: int, mask: Tensor, config: HeadConfig, bias: bool) -> int:
    weight, shift = fit_head(features[~mask], index[~mask], ways, config, bias)
    return int((F.linear(features[mask], weight, shift).argmax(-1) == index[mask]).sum())
