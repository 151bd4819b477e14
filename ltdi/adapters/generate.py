"""The story of an adapter: support -> features -> coefficients -> LoRA -> adapted features -> head -> checked adapter."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.bank import watched
from ltdi.adapters.base import Batches
from ltdi.adapters.check import verify
from ltdi.adapters.closed_form import LinearHeads, fit_heads
from ltdi.adapters.items import spoken
from ltdi.adapters.predictor import Evidence, Prediction
from ltdi.errors import DeadlinePassed
from ltdi.files import digest
from ltdi.pipeline import FEW_FOLDS, MAX_FOLDS, Timer, folds
from ltdi.support import SupportSet, take

if TYPE_CHECKING:
    from ltdi.adapters.adapter import Adapter
    from ltdi.adapters.bundle import AdapterBundle
    from ltdi.bundle import HeadRequest

NEAR = 0.1  # of how far an adapter is from the default one
Lora = Mapping[str, tuple[Tensor, Tensor]]


class _Seen:
    """Features of a task's items, each made once: folds look at the same adapters, each at the rows that it keeps.

    Args:
        items: M of them, in canonical order.
        names: of the classes, or what describes them, as words, in canonical order.
        watched: `[E]`, the places of the items that candidates are compared on.
        until: `time.monotonic()` at which no further pass is begun.

    `told` are the names that a predictor has read.
    """

    def __init__(
        self, bundle: AdapterBundle, items: tuple, names: tuple[str, ...], watched: Tensor, until: float
    ) -> None:
        self._until = until
        self._bundle, self._items, self._names, self.watched = bundle, items, names, watched
        self.told: tuple[str, ...] = ()
        self._all = bundle.body.batches(items)
        self._kept, self._looks = dict[bytes, Tensor](), dict[bytes, Tensor]()

    def under(self, coefficients: Tensor) -> Tensor:
        """`[M, D]`, under an adapter by its coefficients `[W, K]`."""
        key = coefficients.float().numpy().tobytes() if coefficients.any() else b""
        if key not in self._kept:
            self._kept[key] = self.with_lora(self._at(coefficients))
        return self._kept[key]

    def look(self, coefficients: Tensor) -> Tensor:
        """`[E, D]`, the same of those watched."""
        if len(self.watched) == len(self._items) or not coefficients.any():
            return self.under(coefficients)[self.watched]
        key = coefficients.float().numpy().tobytes()
        if key not in self._looks:
            self._looks[key] = self.with_lora(self._at(coefficients), self._watched)
        return self._looks[key]

    def with_lora(self, lora: Lora | None, batches: Batches | None = None) -> Tensor:
        """`[M, D]`, under LoRA, or under the plain base; by `quick_copy`, as a head does not hang on its third digit."""
        _in_time(self._until)
        bundle, batches = self._bundle, batches or self._all
        return bundle.body.features(batches, lora, bundle.config.lora_alpha / bundle.config.r, bundle.parts.saved, quick=True)

    def _at(self, coefficients: Tensor) -> Lora:
        return self._bundle.parts.at(coefficients, self._bundle.config.target.modules)

    @cached_property
    def _watched(self) -> Batches:
        return self._all if len(self.watched) == len(self._items) else self._bundle.body.batches(take(self._items, self.watched))

    @cached_property
    def pooled(self) -> Tensor:
        """`[E, hidden size]`, of the plain base."""
        _in_time(self._until)
        return self._bundle.body.pooled(self._watched)

    @cached_property
    def names(self) -> Tensor | None:
        """`[N, hidden size]`, of the classes' names on the plain base; None where none of them has two letters."""
        if not any(sum(letter.isalpha() for letter in name) > 1 for name in self._names):
            return None
        _in_time(self._until)
        self.told = self._names
        return self._bundle.body.pooled(self._names)

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
def generate_adapter(bundle: AdapterBundle, request: HeadRequest, timer: Timer, until: float = inf) -> Adapter:
    """A checked adapter; no pass over the texts is begun after `until`, of `time.monotonic()`, but the check's over two of them.

    Raises:
        DeadlinePassed: that came before.
        BodyMissing, ForeignBase, DamagedBase: what is wrong with the base model.
        GenerationFailed: the adapter did not pass its check.
    """
    task, options, config = request.task, request.options, bundle.config
    assert isinstance(task, SupportSet)
    index = task.canonical.class_index
    items = take(task.inputs, task.canonical.example_order)
    with timer.stage("embed"):
        described = task.descriptions or {}
        names = tuple(str(described.get(label) or spoken(label)) for label in (task.classes[i] for i in task.canonical.class_order))
        seen = _Seen(bundle, items, names, watched(index, task.ways), until)
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
            "support_digest": _digest_of(task, seen.told), "method": method, "support_accuracy": made.accuracy,
            "baseline_support_accuracy": base.accuracy,
        }  # fmt: skip
        weight, bias = chosen.heads.weight[0], None if chosen.heads.bias is None else chosen.heads.bias[0]
        rows = task.canonical.restore
        _in_time(until)
        adapter = bundle.adapter(
            chosen.lora, weight[rows], None if bias is None else bias[rows], task.classes, request.base_model_name_or_path, facts
        )
        return _proven(bundle, adapter, items, chosen.features, task.class_index[task.canonical.example_order])


def _in_time(until: float) -> None:
    if time.monotonic() > until:
        raise DeadlinePassed("the adapter was not made in time; send fewer or shorter examples, or no check on folds", field="support")


def _digest_of(task: SupportSet, told: tuple[str, ...]) -> str:
    """Of all that the adapter is made from: the content of the task, and the names of its classes where they were read."""
    content = task.canonical.digest
    return digest(content.encode(), *(name.encode() for name in told))[: len(content)] if told else content


def _proven(bundle: AdapterBundle, adapter: Adapter, items: tuple, features: Tensor, rows: Tensor) -> Adapter:
    """The adapter, which says what was checked of it and what it does; `rows` `[M]` are the right ones for the items."""
    _, weight, bias = adapter.head
    answers = F.linear(features, weight, bias)  # [M, N]
    checked = verify(adapter, bundle.body, items, answers, quick=bundle.body.quick is not bundle.body.model)
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
    said = [_predicted(bundle, seen, mean, index, ways, kept[0], seed, None)]
    for row in kept[1:]:
        said.append(said[0] if once else _predicted(bundle, seen, mean, index, ways, row, seed, said[0]))
    whole = said[0].coefficients
    features = torch.stack([seen.under(whole if _near(one.coefficients, whole) else one.coefficients) for one in said])
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


def _near(coefficients: Tensor, whole: Tensor) -> bool:
    """Whether a fold's adapter is that of the whole support but for a tenth at most, so that it is measured under that one."""
    return float((coefficients - whole).norm()) <= NEAR * float(whole.norm())


def _predicted(
    bundle: AdapterBundle, seen: _Seen, mean: Tensor, index: Tensor, ways: int, kept: Tensor, seed: int,
    before: Prediction | None,
) -> Prediction:  # fmt: skip
    """What the predictor says of the examples that are kept; of the others it sees nothing but what `before` tells.

    So a fold's candidates are those of the whole support, and where its adapter is `_near` that of the whole support it is measured under
    that one: the accuracy on folds is a little kind to the adapter.
    """
    rows = kept[seen.watched]
    places = kept.cumsum(0)[seen.watched][rows] - 1  # of those watched, among the examples that are kept
    return bundle.predictor(
        Evidence(
            mean[kept], index[kept], ways, seen.pairs, seed, places,
            look=lambda coefficients: seen.look(coefficients)[rows], pooled=lambda: seen.pooled[rows],
            names=lambda: seen.names, before=before,
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
