"""The head on adapted features: known answers, uneven classes, parts of the examples, no bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltdi.adapters.closed_form import HeadConfig, fit_heads
from ltdi.errors import InvalidConfig

INDEX = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2])
DICE = torch.Generator().manual_seed(0)
X = 7 + 3 * (torch.randn(3, 20, generator=DICE)[INDEX] + torch.randn(10, 20, generator=DICE))
ALL = torch.ones(1, 10, dtype=torch.bool)


def test_it_is_scikit_learn_s_logistic_regression_on_scaled_features() -> None:
    from sklearn.linear_model import LogisticRegression

    centred = (X - X.mean(0)).double().numpy()
    scale = np.sqrt((centred**2).sum(-1).mean())
    theirs = LogisticRegression(C=10, tol=1e-10, max_iter=10_000).fit(centred / scale, INDEX)
    ours = fit_heads(X.unsqueeze(0), INDEX, 3, ALL, HeadConfig())
    assert np.allclose(torch.softmax(ours.logits(X.unsqueeze(0))[0], -1), theirs.predict_proba(centred / scale), atol=1e-3)


@pytest.mark.parametrize("method", ["logistic_regression", "ridge"])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_on_parts_are_those_of_the_parts_alone(method: str, bias: bool) -> None:
    kept = torch.stack([ALL[0], torch.arange(10) % 2 == 0, torch.arange(10) != 3])
    config = HeadConfig(method, 3.0)
    together = fit_heads(X.expand(3, -1, -1), INDEX, 3, kept, config, bias)
    for row, mask in enumerate(kept):
        alone = fit_heads(X[mask].unsqueeze(0), INDEX[mask], 3, torch.ones(1, int(mask.sum()), dtype=torch.bool), config, bias)
        assert torch.allclose(together.weight[row], alone.weight[0], atol=1e-5)
        assert (together.bias is None) == (not bias)
        assert not bias or torch.allclose(together.bias[row], alone.bias[0], atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_the_unit_of_the_features_does_not_matter(bias: bool) -> None:
    ours, scaled = (fit_heads(c * X.unsqueeze(0), INDEX, 3, ALL, HeadConfig(), bias) for c in (1, 1000))
    assert torch.allclose(ours.logits(X.unsqueeze(0)), scaled.logits(1000 * X.unsqueeze(0)), atol=1e-3)
    assert (ours.logits(X.unsqueeze(0))[0].argmax(-1) == INDEX).all()


def test_equal_features_and_unknown_methods() -> None:
    same = fit_heads(torch.ones(1, 10, 20), INDEX, 3, ALL, HeadConfig())
    assert torch.isfinite(same.weight).all() and same.logits(torch.ones(1, 1, 20))[0, 0].argmax() == 0
    with pytest.raises(InvalidConfig, match="'svm' of strength 1"):
        HeadConfig("svm", 1.0)
