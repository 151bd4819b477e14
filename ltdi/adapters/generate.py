"""The story of an adapter: support -> features -> coefficients -> LoRA -> adapted features -> head -> checked adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.check import verify
from ltdi.adapters.closed_form import LinearHeads, fit_heads
from ltdi.adapters.predictor import Evidence, Prediction
from ltdi.pipeline import FEW_FOLDS, MAX_FOLDS, Timer, folds
from ltdi.support import SupportSet, take

if TYPE_CHECKING:
    from ltdi.adapters.adapter import Adapter
    from ltdi.adapters.bundle import AdapterBundle
    from ltdi.bundle import HeadRequest

Lora = Mapping[str, tuple[Tensor, Tensor]]


class _Seen:
    """Features of a task's items, each made once: folds look at the same adapters, each at the rows that it keeps."""

    def __init__(self, bundle: AdapterBundle, items: tuple) -> None:
        self._bundle, self._items, self._kept = bundle, items, dict[bytes, Tensor]()

    def under(self, coefficients: Tensor) -> Tensor:
        """`[M, D]`, under an adapter by its coefficients `[W, K]`."""
        key = coefficients.float().numpy().tobytes() if coefficients.any() else b""
        if key not in self._kept:
            self._kept[key] = self.with_lora(self._bundle.parts.at(coefficients, self._bundle.config.target.modules))
        return self._kept[key]

    def with_lora(self, lora: Lora | None) -> Tensor:
        """`[M, D]`, under LoRA, or under the plain base."""
        bundle = self._bundle
        return bundle.body.features(self._items, lora, bundle.config.lora_alpha / bundle.config.r, bundle.parts.saved)

    @cached_property
    def pooled(self) -> Tensor:
        """`[M, hidden size]`, of the plain base."""
        return self._bundle.body.pooled(self._items)

    @property
    def pairs(self) -> bool:
        """Whether the items are pairs."""
        return not isinstance(self._items[0], str)


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
        seen = _Seen(bundle, items)
        mean = seen.under(torch.zeros(config.space.modules, config.directions))  # [M, D]
        plain = seen.with_lora(None) if config.baseline == "plain" else mean
    with timer.stage("sample"):
        few = MAX_FOLDS if bundle.predictor.constant else FEW_FOLDS
        masks = folds(index, task.ways, few) if options.check else []
        made = _generated(bundle, seen, mean, index, task.ways, masks, options.seed)
        base = _baseline(bundle, plain, index, task.ways, masks)
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
    bundle: AdapterBundle, seen: _Seen, mean: Tensor, index: Tensor, ways: int, masks: list[Tensor], seed: int
) -> _Candidate:
    """The adapter that the predictor chooses, with its head; the same for each fold without what is held out."""
    kept = torch.stack([torch.ones(len(index), dtype=torch.bool), *(~mask for mask in masks)])
    once = bundle.predictor.constant
    said = [_predicted(bundle, seen, mean, index, ways, row, seed) for row in (kept[:1] if once else kept)]
    said = said * len(kept) if once else said
    features = torch.stack([seen.under(one.coefficients) for one in said])  # [1 + F, M, D]
    own = [
        bundle.predictor.head(under[row], index[row], ways, one) for one, under, row in zip(said, features, kept, strict=True)
    ]
    if any(head is None for head in own):
        heads = fit_heads(features, index, ways, kept, bundle.config.head, bundle.config.target.head_bias)
    else:
        rows = torch.stack(own).float()
        heads = LinearHeads(rows[..., :-1], rows[..., -1] if bundle.config.target.head_bias else None)
    lora = bundle.parts.at(said[0].coefficients, bundle.config.target.modules)
    return _candidate(lora, features, heads, index, masks)


def _predicted(
    bundle: AdapterBundle, seen: _Seen, mean: Tensor, index: Tensor, ways: int, kept: Tensor, seed: int
) -> Prediction:
    """What the predictor says of the examples that are kept; of the others it sees nothing."""
    return bundle.predictor(
        Evidence(
            mean[kept], index[kept], ways, seen.pairs, seed,
            look=lambda coefficients: seen.under(coefficients)[kept], pooled=lambda: seen.pooled[kept],
        )
    )  # fmt: skip


def _baseline(bundle: AdapterBundle, seen: Tensor, index: Tensor, ways: int, masks: list[Tensor]) -> _Candidate:
    """The closed form's head on the features of the plain base, or of the mean adapter."""
    kept = torch.stack([torch.ones(len(index), dtype=torch.bool), *(~mask for mask in masks)])
    features = seen.expand(len(kept), -1, -1)
    heads = fit_heads(features, index, ways, kept, bundle.config.baseline_head, bundle.config.target.head_bias)
    return _candidate(bundle.parts.baseline(bundle.config.baseline), features, heads, index, masks)


def _candidate(lora: Lora, features: Tensor, heads: LinearHeads, index: Tensor, masks: list[Tensor]) -> _Candidate:
    """With its accuracy on what is held out; features are `[1 + F, M, D]`, the first those of the whole support."""
    if not masks:
        return _Candidate(lora, features[0], heads, None)
    held = torch.stack(masks)
    right = (heads.logits(features)[1:].argmax(-1) == index) & held
    return _Candidate(lora, features[0], heads, int(right.sum()) / int(held.sum()))
