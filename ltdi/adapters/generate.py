"""The story of an adapter: support -> features -> coefficients -> LoRA -> adapted features -> head -> checked adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.check import verify
from ltdi.adapters.closed_form import HeadConfig, LinearHeads, fit_heads
from ltdi.adapters.predictor import Evidence
from ltdi.pipeline import FEW_FOLDS, MAX_FOLDS, Timer, folds
from ltdi.support import SupportSet, take

if TYPE_CHECKING:
    from ltdi.adapters.adapter import Adapter
    from ltdi.adapters.bundle import AdapterBundle
    from ltdi.bundle import HeadRequest

Lora = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Candidate:
    """An adapter with its heads, before one is chosen: `heads` of the whole support first, then of the folds."""

    lora: Lora
    features: Tensor
    heads: LinearHeads
    accuracy: float | None


@torch.inference_mode()
def generate_adapter(bundle: AdapterBundle, request: HeadRequest, timer: Timer) -> Adapter:
    """A checked adapter.

    Raises:
        BodyMissing, ForeignBase, DamagedBase: what is wrong with the base model.
        GenerationFailed: the adapter did not pass its check.
    """
    task, options, config = request.task, request.options, bundle.config
    assert isinstance(task, SupportSet)
    index = task.canonical.class_index
    items = take(task.inputs, task.canonical.example_order)
    with timer.stage("embed"):
        looks = not bundle.predictor.constant or config.baseline == "plain"
        plain = bundle.body.features(items, whole=bundle.parts.saved) if looks else None  # [M, D]
    with timer.stage("sample"):
        few = MAX_FOLDS if bundle.predictor.constant else FEW_FOLDS
        masks = folds(index, task.ways, few) if options.check else []
        made = _generated(bundle, items, plain, index, task.ways, masks, options.seed)
        base = _baseline(bundle, items, plain, made, index, task.ways, masks)
    with timer.stage("check"):
        behind = 0.0 if made.accuracy is None else base.accuracy - made.accuracy
        method = "baseline" if options.fallback == "baseline" and behind > config.fallback_margin else "generated"
        chosen = base if method == "baseline" else made
        facts = {
            "model": bundle.name, "bundle_digest": bundle.digest, "body": config.body.name, "seed": options.seed,
            "support_digest": task.canonical.digest, "method": method, "support_accuracy": made.accuracy,
            "baseline_support_accuracy": base.accuracy,
        }  # fmt: skip
        weight, bias = chosen.heads.weight[0], None if chosen.heads.bias is None else chosen.heads.bias[0]
        rows = task.canonical.restore
        adapter = bundle.adapter(
            chosen.lora, weight[rows], None if bias is None else bias[rows], task.classes, request.base_model_name_or_path, facts
        )
        return _proven(bundle, adapter, items, chosen.features, task.class_index[task.canonical.example_order])


def _proven(bundle: AdapterBundle, adapter: Adapter, items: tuple, features: Tensor, rows: Tensor) -> Adapter:
    """The adapter, which says what was checked of it and what it does; `rows` `[M]` are the right ones for the items."""
    _, weight, bias = adapter.head
    answers = F.linear(features, weight, bias)  # [M, N]
    checked = verify(adapter, bundle.body, items, answers)
    effect = {
        "delta_norm": float(f"{checked.delta_norm:.4g}"),
        "logit_change": float(f"{checked.logit_change:.3g}"),
        "support_agreement": round(float((answers.argmax(-1) == rows).float().mean()), 4),
    }
    return replace(adapter, metadata={**adapter.metadata, "checks": list(checked.checks), "effect": effect})


def _generated(
    bundle: AdapterBundle, items: tuple, plain: Tensor | None, index: Tensor, ways: int, masks: list[Tensor], seed: int
) -> _Candidate:
    """The adapter that the predictor chooses; for each fold the one that it chooses without what is held out."""
    lora = _lora(bundle, items, plain, index, ways, seed)
    seen = _adapted(bundle, items, lora)  # [M, D]
    features = [seen]
    for mask in masks:
        if bundle.predictor.constant:
            features.append(seen)
        else:
            kept = (~mask).nonzero().squeeze(1)
            features.append(_adapted(bundle, items, _lora(bundle, take(items, kept), plain[kept], index[kept], ways, seed)))
    return _candidate(lora, torch.stack(features), index, ways, masks, bundle.config.head, bundle)


def _baseline(
    bundle: AdapterBundle, items: tuple, plain: Tensor | None, made: _Candidate, index: Tensor, ways: int, masks: list[Tensor]
) -> _Candidate:
    """The closed form's head on the features of the base, or of the mean adapter."""
    lora = bundle.parts.baseline(bundle.config.baseline)
    if bundle.config.baseline == "plain":
        seen = plain
    else:
        seen = made.features if bundle.predictor.constant else _adapted(bundle, items, lora)
    return _candidate(
        lora, seen.expand(1 + len(masks), -1, -1), index, ways, masks, bundle.config.baseline_head, bundle
    )


def _candidate(
    lora: Lora, features: Tensor, index: Tensor, ways: int, masks: list[Tensor], config: HeadConfig, bundle: AdapterBundle
) -> _Candidate:
    """Heads on features `[1 + F, M, D]`, the first on all examples, and their accuracy on what is held out."""
    held = torch.stack([torch.zeros(len(index), dtype=torch.bool), *masks])
    heads = fit_heads(features, index, ways, ~held, config, bundle.config.target.head_bias)
    right = (heads.logits(features).argmax(-1) == index) & held
    return _Candidate(lora, features[0], heads, int(right.sum()) / int(held.sum()) if masks else None)


def _lora(bundle: AdapterBundle, items: tuple, features: Tensor | None, index: Tensor, ways: int, seed: int) -> Lora:
    def look(coefficients: Tensor) -> Tensor:
        return _adapted(bundle, items, bundle.parts.at(coefficients))

    seen = torch.zeros(0, bundle.feature_size) if features is None else features
    return bundle.parts.at(bundle.predictor(Evidence(seen, index, ways, seed, look)))


def _adapted(bundle: AdapterBundle, items: tuple, lora: Lora) -> Tensor:
    return bundle.body.features(items, lora, bundle.config.lora_alpha / bundle.config.r, bundle.parts.saved)
