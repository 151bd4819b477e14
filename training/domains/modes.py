"""How the classes' means move from domain to domain: directions of the whole configuration, one number each in a task."""

from __future__ import annotations

import torch
from torch import Tensor

from training.domains.episodes import DomainBank, Known


def centred(means: Tensor) -> Tensor:
    """`[..., classes, D]` less their mean over classes."""
    return means - means.mean(-2, keepdim=True)


def means_of(bank: DomainBank) -> Tensor:
    """Class means of a domain, `[classes, D]`."""
    return bank.features[:, :, 0].sum(1) / bank.counts.unsqueeze(1)


def common(known: Known) -> Tensor:
    """The classes' means over the known domains, each domain less its own mean: `[classes, D]`."""
    return centred(known.means).mean(0)


def virtual_modes(means: Tensor, changed: Tensor) -> Tensor:
    """How the classes of each domain move when its images are changed: `[domains changes, classes, D]`.

    Args:
        means: `[domains, classes, D]`.
        changed: `[domains, changes, classes, D]`.
    """
    return (centred(changed) - centred(means).unsqueeze(1)).flatten(0, 1)


def fitted(there: Tensor, here: Tensor, modes: Tensor, weighed: Tensor, shots: int) -> Tensor:
    """Known means moved along the modes as far as the examples say: the posterior mean under a standard normal prior.

    Minimises `shots |here - there - sum_r z_r modes_r|^2_precision + |z|^2` over one z a task.

    Args:
        there, here: `[B, N, D]`, known means and means of the examples, each less its mean over classes.
        modes: `[B, R, N, D]`, of the task's classes, scaled to their standard deviations.
        weighed: `[B, R, N, D]`, the modes times the precision of an example about its class's mean.
        shots: examples a class.

    Returns:
        `[B, N, D]`.
    """
    modes = modes - modes.mean(2, keepdim=True)
    weighed = (weighed - weighed.mean(2, keepdim=True)).flatten(2)
    curvature = shots * weighed @ modes.flatten(2).transpose(1, 2)
    slope = shots * weighed @ (here - there).flatten(1).unsqueeze(-1)
    found = torch.linalg.solve(curvature + torch.eye(modes.shape[1]), slope).squeeze(-1)
    return there + torch.einsum("br,brnd->bnd", found, modes)
