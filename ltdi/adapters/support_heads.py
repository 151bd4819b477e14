"""Closed-form classifiers on adapted features, chosen and tempered by what they say of examples that are left out.

All work on z, the support's features centred and divided by their mean length, in a metric stretched along the classifiers
of related tasks: I + gamma sum_r w_r d_r d_r'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-6
STRENGTH = 0.3  # of ridge regression
RIDGE_SCALE = 0.4  # its logits have about the size of the means' then
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of ridge regression
DOUBT = 2.0  # by how many nats over all left-out answers ridge regression alone must be ahead
SCALES = torch.logspace(-0.5, 1.75, 19)  # of logits: 0.3 to 56


@dataclass(frozen=True)
class Standard:
    """Features as the heads see them, and the way back.

    Args:
        z: `[M, D]`.
        centre: `[D]`, and their mean length.
    """

    z: Tensor
    centre: Tensor
    length: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standard:
        """Of features `[M, D]`."""
        centre = features.mean(0)
        length = (features - centre).norm(dim=1).mean().clamp_min(TINY)
        return cls((features - centre) / length, centre, length)

    def back(self, weight: Tensor, bias: Tensor, scale: Tensor | float) -> Tensor:
        """A classifier `[N, D + 1]` of features from one of z: `[N, D]` and `[N]`, its logits times `scale`."""
        weight = weight * (scale / self.length)
        return torch.cat([weight, (bias * scale - weight @ self.centre).unsqueeze(1)], dim=1)


@dataclass(frozen=True)
class NearestMeans:
    """Nearest class mean in the stretched metric; with no direction the plain nearest mean.

    Args:
        gamma: how much it is stretched.
        scale: of the logits.
    """

    gamma: Tensor
    scale: Tensor

    def __call__(self, features: Tensor, labels: Tensor, ways: int, rows: Tensor, weights: Tensor) -> Tensor:
        """The classifier `[N, D + 1]` from features `[M, D]`, labels `[M]`, directions `[R, D]` and their weights `[R]`."""
        standard = Standard.of(features)
        return standard.back(*_means(stretched(standard.z, rows, self.gamma * weights), labels, ways), self.scale)


def stretched(z: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """z `[M, D]` and its image in the metric I + sum_r w_r d_r d_r', so that inner products are z @ image'."""
    return z, z + (z @ rows.T * weights) @ rows


def _means(both: tuple[Tensor, Tensor], labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    z, image = both
    y = F.one_hot(labels, ways).to(z)
    share = y.T / y.sum(0)[:, None]
    weight = share @ image
    return weight, -(weight * (share @ z)).sum(1) / 2


def fitted(features: Tensor, labels: Tensor, ways: int, rows: Tensor, weights: Tensor) -> Tensor:
    """Nearest means and ridge regression on the support, mixed and tempered: `[N, D + 1]`.

    The share of each and the scale of the logits are those of the least cross entropy of the left-out answers, ridge regression
    at a handicap: it counts where there are many examples and several classes.

    Args:
        features: `[M, D]`.
        rows, weights: `[R, D]`, `[R]`, directions and by how much the metric is stretched along each.
    """
    standard = Standard.of(features)
    both = stretched(standard.z, rows, weights)
    ridge = left_out_ridge(both[0] @ both[1].T, labels, ways, STRENGTH) * RIDGE_SCALE
    share, scale = least_entropy(left_out_means(both, labels, ways), ridge, labels)
    parts = zip(_means(both, labels, ways), _ridge(both, labels, ways), strict=True)
    return standard.back(*((1 - share) * of_means + share * RIDGE_SCALE * of_ridge for of_means, of_ridge in parts), scale)


def _ridge(both: tuple[Tensor, Tensor], labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    z, image = both
    y = F.one_hot(labels, ways).to(z)
    dual = torch.linalg.solve(z @ image.T + STRENGTH * torch.eye(len(z)), y - y.mean(0))
    return dual.T @ image, y.mean(0)


def least_entropy(means: Tensor, ridge: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of `ridge` beside `means`, logits `[M, N]`, and the scale of both that give the least cross entropy.

    `DOUBT` is added to that of `ridge`. The scale is that of one more answer that were wrong, so that a support whose examples
    are all told apart does not make logits certain.
    """
    losses = torch.stack([
        F.cross_entropy(((1 - share) * means + share * ridge) * scale, labels) + share * DOUBT / len(labels)
        for share in SHARES for scale in SCALES
    ])  # fmt: skip
    share = SHARES[int(losses.argmin()) // len(SCALES)]
    mixed, wrong = (1 - share) * means + share * ridge, 1 / (len(labels) + 1)
    smooth = torch.stack([F.cross_entropy(mixed * scale, labels, label_smoothing=wrong) for scale in SCALES])
    return share, float(SCALES[smooth.argmin()])


def left_out_means(both: tuple[Tensor, Tensor], labels: Tensor, ways: int) -> Tensor:
    """What nearest means without an example say of it, `[M, N]`; a class of one example has no mean without it, and keeps it."""
    z, image = both
    y = F.one_hot(labels, ways).to(z)
    counts = y.sum(0)
    gram = z @ image.T
    towards = gram @ y / counts  # [M, N], z_i with the mean of each class
    norms = ((y.T @ gram) * y.T).sum(1) / counts.square()  # [N]
    own, n = gram.diagonal(), counts[labels]
    rest = (n - 1).clamp_min(1)
    mine = towards.gather(1, labels[:, None]).squeeze(1)
    without = torch.where(n > 1, (mine * n - own) / rest, mine)
    norm = torch.where(n > 1, (norms[labels] * n.square() - 2 * mine * n + own) / rest.square(), norms[labels])
    answers = towards - norms / 2
    return answers.scatter(1, labels[:, None], (without - norm / 2)[:, None])


def left_out_ridge(gram: Tensor, labels: Tensor, ways: int, strength: float) -> Tensor:
    """What ridge regression without an example says of it, `[M, N]`, from inner products `[M, M]` of centred features."""
    y = F.one_hot(labels, ways).to(gram)
    middle = y.mean(0)
    hat = torch.linalg.solve(gram + strength * torch.eye(len(gram)), gram)
    leverage = (hat.diagonal() + 1 / len(gram)).clamp_max(0.999)
    return y - (y - middle - hat @ (y - middle)) / (1 - leverage)[:, None]


def left_out(features: Tensor, labels: Tensor, ways: int, rows: Tensor, strength: float, gamma: float) -> tuple[float, float]:
    """Leave-one-out accuracy and mean squared error of ridge regression, in closed form.

    Its penalty w' w is lighter along directions: w' (I + gamma sum_r d_r d_r')^-1 w.

    Args:
        features: `[M, D]`.
        rows: `[R, D]`, directions with the weight one; none for plain ridge regression.
    """
    z, image = stretched(Standard.of(features).z, rows, torch.full((len(rows),), gamma))
    answers = left_out_ridge(z @ image.T, labels, ways, strength)
    y = F.one_hot(labels, ways).to(answers)
    return float((answers.argmax(1) == labels).float().mean()), float((answers - y).square().mean())
