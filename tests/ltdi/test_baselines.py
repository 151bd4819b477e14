"""Closed forms against their definitions and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from ltdi import baselines


def task(ways: int = 4, shots: int = 5, size: int = 12, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Support `[B, N, K, D]` around class centres, and queries `[B, Q, D]`."""
    chance = torch.Generator().manual_seed(3)
    centres = torch.randn(batch, ways, 1, size, generator=chance, dtype=torch.float64)
    support = centres + 0.7 * torch.randn(batch, ways, shots, size, generator=chance, dtype=torch.float64)
    return support, torch.randn(batch, 30, size, generator=chance, dtype=torch.float64)


def rows(support: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One task's support `[N, K, D]` as scikit-learn takes it."""
    ways, shots, size = support.shape
    return support.reshape(-1, size).numpy(), np.repeat(np.arange(ways), shots)


def test_class_means_pick_the_nearest_mean() -> None:
    support, queries = task()
    distance = (queries.unsqueeze(2) - support.mean(2).unsqueeze(1)).square().sum(-1)
    logits = baselines.logits(baselines.class_means(support), queries)
    torch.testing.assert_close(logits - queries.square().sum(-1, keepdim=True), -distance)


def test_ridge_is_scikit_learn_s() -> None:
    support, queries = task()
    logits = baselines.logits(baselines.ridge(support, 0.8), queries)
    for i in range(2):
        x, y = rows(support[i])
        expected = Ridge(alpha=0.8).fit(x, np.eye(4)[y]).predict(queries[i].numpy())
        np.testing.assert_allclose(logits[i].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("inverse_strength", [0.1, 1.0])
def test_logistic_regression_is_scikit_learn_s(inverse_strength: float) -> None:
    support, queries = task()
    logits = baselines.logits(baselines.logistic_regression(support, inverse_strength), queries)
    for i in range(2):
        x, y = rows(support[i])
        known = LogisticRegression(C=inverse_strength, solver="lbfgs", max_iter=5000, tol=1e-9).fit(x, y)
        ours = torch.softmax(logits[i], dim=-1).numpy()
        np.testing.assert_allclose(ours, known.predict_proba(queries[i].numpy()), atol=2e-4)


def test_lda_with_the_identity_as_covariance_is_class_means() -> None:
    support, queries = task()
    lda = baselines.logits(baselines.lda(support, torch.eye(12, dtype=torch.float64)), queries)
    torch.testing.assert_close(2 * lda, baselines.logits(baselines.class_means(support), queries))


def test_lda_measures_distance_in_the_covariance() -> None:
    support, queries = task()
    root = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    covariance = root @ root.T + torch.eye(12, dtype=torch.float64)
    gap = queries.unsqueeze(2) - support.mean(2).unsqueeze(1)
    distance = (gap @ torch.linalg.inv(covariance) * gap).sum(-1)
    logits = baselines.logits(baselines.lda(support, covariance), queries)
    torch.testing.assert_close(torch.softmax(logits, -1), torch.softmax(-distance / 2, -1), atol=1e-9, rtol=1e-6)
