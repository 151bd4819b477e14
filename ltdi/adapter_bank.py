"""From a support set to a LoRA adapter with its classifier: the stored tasks, the chain over them, the closed form.

support tokens -> features under the anchor [M, D] -> relation of each stored task [T, F]
-> x_T .. x_0 [W, K] -> B [layers, 2, D, rank] -> features under the adapter [M, D] -> classifier [N, D + 1].
No gradient is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.bodies.adapted import AdaptedBert, Tokens
from ltdi.denoisers.adapter_tokens import AdapterCondition, AdapterTokens
from ltdi.sampler import sample

TINY = 1e-6


@dataclass(frozen=True)
class Bank:
    """Prepared adapters around one anchor, the multi-task adapter.

    Args:
        anchor: `[layers, 2, D, rank]`.
        basis: `[W, K, D * rank]`, orthonormal for each weight token.
        spread: `[W]`, the unit of a token's coordinates.
        trajectories: `[T, m + 1, W, K]`, waypoints less the anchor, in these coordinates.
        directions: `[R, D]`, rows of the stored tasks' classifiers under the anchor: centred over a task's classes,
            length one.
        owner: `[R]`, the stored task of each.
        pairs: `[T]`, 1 for tasks on pairs of texts.
        ways: `[T]`, their classes.
    """

    anchor: Tensor
    basis: Tensor
    spread: Tensor
    trajectories: Tensor
    directions: Tensor
    owner: Tensor
    pairs: Tensor
    ways: Tensor

    def decode(self, x: Tensor) -> Tensor:
        """B `[B, layers, 2, D, rank]` from coordinates `[B, W, K]`."""
        moved = torch.einsum("bwk,wkp->bwp", x * self.spread[:, None], self.basis)
        return self.anchor + moved.reshape(len(x), *self.anchor.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """W, K."""
        return self.basis.shape[0], self.basis.shape[1]


def make_bank(
    anchor: Tensor, waypoints: Tensor, heads: list[Tensor], pairs: list[bool], components: int
) -> Bank:
    """A bank of prepared adapters.

    Args:
        anchor: `[layers, 2, D, rank]`.
        waypoints: `[T, m + 1, layers, 2, D, rank]`.
        heads: of each task under the anchor, `[N, D + 1]`.
        pairs: whether a task is on pairs.
        components: K at most.
    """
    moved = (waypoints - anchor).flatten(4, 5).flatten(2, 3)  # [T, m + 1, W, P]
    ends = moved[:, 0].transpose(0, 1)  # [W, T, P]
    _, _, right = torch.linalg.svd(ends, full_matrices=False)
    basis = right[:, :components]
    raw = torch.einsum("tmwp,wkp->tmwk", moved, basis)
    spread = raw[:, 0].square().mean((0, 2)).sqrt().clamp_min(TINY)
    rows = [_rows(head) for head in heads]
    owner = torch.cat([torch.full((len(own),), i) for i, own in enumerate(rows)])
    ways = torch.tensor([float(len(head)) for head in heads])
    return Bank(
        anchor, basis, spread, raw / spread[:, None], torch.cat(rows), owner,
        torch.tensor(pairs, dtype=torch.float32), ways,
    )  # fmt: skip


def _rows(head: Tensor) -> Tensor:
    """Directions of a classifier: its rows less their mean, length one; two classes have one direction."""
    rows = head[:, :-1] - head[:, :-1].mean(0)
    rows = rows[:1] if len(rows) == 2 else rows
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(TINY)


def separation(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Share of the variance of each column that lies between classes, less what chance gives: `[R]`, at most 1.

    Args:
        values: `[M, R]`.
        labels: `[M]`, 0 to `ways` - 1.
    """
    centred = values - values.mean(0)
    one_hot = torch.nn.functional.one_hot(labels, ways).to(values)
    counts = one_hot.sum(0).clamp_min(1)
    means = one_hot.T @ centred / counts[:, None]
    share = (means.square() * counts[:, None]).sum(0) / centred.square().sum(0).clamp_min(TINY)
    chance = (ways - 1) / max(len(values) - 1, 1)
    return (share - chance) / max(1 - chance, TINY)


def relations(bank: Bank, features: Tensor, labels: Tensor, ways: int, pair: bool) -> Tensor:
    """How each stored task relates to a support set, `[T, 5]`.

    The best and the mean separation that its classifier's rows give, its rank among the tasks, log ways, and whether
    both are on pairs or on single texts.

    Args:
        features: `[M, D]`, of the support under the anchor.
        labels: `[M]`.
    """
    rows = separation(features @ bank.directions.T, labels, ways)
    tasks = len(bank.ways)
    best = torch.full((tasks,), -1.0).scatter_reduce(0, bank.owner, rows, "amax")
    mean = torch.zeros(tasks).scatter_reduce(0, bank.owner, rows, "mean", include_self=False)
    relative = (best - best.mean()) / best.std().clamp_min(0.02)
    same = 1 - (bank.pairs - float(pair)).abs()
    return torch.stack([best, mean, relative / 3, bank.ways.log() / 2, same], dim=1)


class PriorHead(nn.Module):
    """Ridge regression whose penalty is lighter along the classifiers of related tasks.

    Weights w minimise |Y - Z w|^2 + lambda w' (I + gamma sum_t a_t d_t d_t')^{-1} w, Z the support's features centred
    and divided by their mean length, d_t the directions of stored task t, a_t its weight in the chain's last step.
    With gamma = 0 it is ridge regression.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_lambda = nn.Parameter(torch.tensor(0.5))
        self.log_gamma = nn.Parameter(torch.tensor(2.5))
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, features: Tensor, labels: Tensor, ways: int, bank: Bank, weights: Tensor) -> Tensor:
        """The classifier `[N, D + 1]` from features `[M, D]`, labels `[M]` and weights of stored tasks `[T]`."""
        centre = features.mean(0)
        length = (features - centre).norm(dim=1).mean().clamp_min(TINY)
        z = (features - centre) / length
        y = torch.nn.functional.one_hot(labels, ways).to(z)
        middle = y.mean(0)
        metric = bank.directions * (self.log_gamma.exp() * weights[bank.owner]).sqrt().unsqueeze(1)
        seen = z @ metric.T  # [M, R]
        gram = z @ z.T + seen @ seen.T + self.log_lambda.exp() * torch.eye(len(z))
        solved = torch.linalg.solve(gram, y - middle)  # [M, N]
        rows = (solved.T @ z + (solved.T @ seen) @ metric) * self.log_scale.exp() / length
        return torch.cat([rows, (middle - rows @ centre).unsqueeze(1)], dim=1)


@dataclass(frozen=True)
class Generated:
    """An adapter: B `[layers, 2, D, rank]`, its classifier `[N, D + 1]`, what each stored task counted `[T]`."""

    lora_b: Tensor
    classifier: Tensor
    weights: Tensor


class AdapterGenerator(nn.Module):
    """The denoiser, the head, and what every adapter has beside the anchor; a bank is given at each call.

    Args:
        shape: of B, `(layers, 2, D, rank)`.
    """

    def __init__(self, denoiser: AdapterTokens, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.denoiser, self.head = denoiser, PriorHead()
        self.shift = nn.Parameter(torch.zeros(shape))

    def decode(self, bank: Bank, x: Tensor) -> Tensor:
        """B `[B, layers, 2, D, rank]` from coordinates `[B, W, K]`."""
        return bank.decode(x) + self.shift

    def coordinates(self, noise: Tensor, condition: AdapterCondition) -> tuple[Tensor, Tensor]:
        """x_0 `[B, W, K]` by Eq. 1 from x_T, and the stored tasks' weights in its last step `[B, T]`."""
        states = [noise]
        x = sample(lambda x, t: self.denoiser(x, t, condition), noise, self.denoiser.schedule, lambda t, x: states.append(x))
        return x, self.denoiser.weigh(states[-2], 1, condition)

    @torch.no_grad()
    def generate(
        self, encoder: AdaptedBert, bank: Bank, support: Tokens, labels: Tensor, ways: int, seed: int = 0
    ) -> Generated:
        """The adapter of a task from its support set alone."""
        pair = bool(support.kinds.any())
        features = encoder.pooler(encoder.hidden(support, bank.anchor[None])[:, 0])
        told = relations(bank, features, labels, ways, pair)[None]
        condition = AdapterCondition(told, bank.trajectories, torch.ones(1, len(bank.ways)))
        noise = torch.randn(1, *bank.shape, generator=torch.Generator().manual_seed(seed))
        x, weights = self.coordinates(noise, condition)
        lora_b = self.decode(bank, x)
        features = encoder.pooler(encoder.hidden(support, lora_b)[:, 0])
        return Generated(lora_b[0], self.head(features, labels, ways, bank, weights[0]), weights[0])
