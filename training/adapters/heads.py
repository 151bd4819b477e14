"""Closed-form classifiers on the features of a support set, the comparators' and the generated adapters' alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.support_heads import fitted
from ltdi.baselines import class_means, logistic_regression, logits, ridge

Head = Callable[[Tensor], Tensor]


def means_and_ridge(support: Tensor) -> Tensor:
    """The head of generated adapters without directions of related tasks, from `[1, N, K, D]`: `[1, N, D + 1]`."""
    _, ways, shots, size = support.shape
    nothing = support.new_zeros(0, size)
    labels = torch.arange(ways).repeat_interleave(shots)
    return fitted(support[0].flatten(0, 1), labels, ways, nothing, nothing[:, 0]).unsqueeze(0)


HEADS: dict[str, Head] = {
    "class means": class_means,
    "means and ridge": means_and_ridge,
    "ridge 0.3": lambda support: ridge(support, 0.3),
    "ridge 1": lambda support: ridge(support, 1.0),
    "ridge 3": lambda support: ridge(support, 3.0),
    "logistic 0.3": lambda support: logistic_regression(support, 0.3, 100),
    "logistic 1": lambda support: logistic_regression(support, 1.0, 100),
    "logistic 3": lambda support: logistic_regression(support, 3.0, 100),
    "logistic 10": lambda support: logistic_regression(support, 10.0, 100),
}


def head_accuracies(support: Tensor, labels: Tensor, ways: int, test: Tensor, wanted: Tensor, unit: bool = False) -> dict:
    """Accuracy in per cent of each closed form.

    Args:
        support: `[N K, D]`, classes in order, equally many of each.
        labels: unused but for a check that classes are in order.
        unit: features to length one before all else.
    """
    if unit:
        support, test = F.normalize(support, dim=-1), F.normalize(test, dim=-1)
    assert torch.equal(labels, labels.sort().values)
    centre = support.mean(0)
    length = (support - centre).norm(dim=1).mean()
    grouped = ((support - centre) / length).view(1, ways, -1, support.shape[1])
    queries = ((test - centre) / length)[None]
    return {name: percent(logits(head(grouped), queries)[0], wanted) for name, head in HEADS.items()}


def percent(answers: Tensor, wanted: Tensor) -> float:
    """Per cent of the rows whose largest logit is the wanted class."""
    return round(float((answers.argmax(1) == wanted).float().mean()) * 100, 2)
