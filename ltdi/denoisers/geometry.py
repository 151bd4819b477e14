"""The denoiser of the `geometry` recipe: it sees similarities and answers, never a direction of the space.

So it holds for data sets, and for encoders, that it was not trained on. At every step it reads what the current
head says of the labelled items and of the pool, and from a few dozen numbers of that, the same under every rotation
of the space, it chooses how to mix the closed forms of the task with the current head, and how far to go along two
Newton directions: towards the labels of the labelled items, and towards sharper answers on the pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.errors import InvalidConfig
from ltdi.experts import EXPERTS, TaskItems, all_experts, centred, comparable, logits, shares_under, some_of, uncentre
from ltdi.schedule import Schedule

POOL_WEIGHT = 0.3  # of a pool item beside a labelled one, in the curvature
ITEM_FACTS, TASK_FACTS, STATE_FACTS = 6, 9, 6
EXAMPLES_FACT, SKEW_FACT = 1, 8  # in a task's facts: examples a class, and how unequal the classes are in the pool
START = {  # of the mixture, before training: preference, and its growth with the logarithm of examples a class
    "means": (-0.5, -0.7), "cosine": (-0.5, -0.7), "name_means": (2.2, -1.8), "names": (0.3, -1.5),
    "ridge": (0.5, -0.5), "ridge_loose": (0.0, -0.5), "logistic": (1.5, 1.0), "logistic_loose": (1.5, 1.0),
    "pool_means": (1.8, -1.5), "pool_means_full": (1.3, -1.5), "self_training": (2.2, 2.5),
    "prior_means": (-0.5, 0.0), "prior_names": (-1.0, -1.0), "directed_means": (1.5, -1.0), "directed_pool": (1.5, -1.0),
}  # fmt: skip
START_CENTRED = START | {  # where the encoder is any: few are made for comparing as they are, and ridge evens them out
    "name_means": (1.7, -1.2), "names": (0.0, -1.2), "ridge": (1.5, -1.5), "ridge_loose": (2.0, -1.5),
    "logistic": (0.5, 1.5), "logistic_loose": (0.5, 1.5), "pool_means": (1.0, -1.0), "pool_means_full": (0.5, -1.0),
    "self_training": (2.5, 1.5),
}  # fmt: skip
SKEW_GROWTH = 3.0  # of the preference for `prior_means` and `prior_names`
LEAST_SCALE = 1e-3  # of x_T, where a task holds nothing that tells its classes apart
RESIDUAL = 0.3  # standard deviation of x_T beside the root mean square of the base's weights


@dataclass(frozen=True)
class GeometryConfig:
    """Sizes of the denoiser.

    Args:
        width: of its hidden layer.
        item_width: of the layer that weighs pool items.
        directions: whether the bundle knows the directions of a domain, a matrix `[D, D]`.
        centre: whether a mean of the task is subtracted from its features (`TaskItems.of`), for encoders of unknown mean.
    """

    width: int = 24
    item_width: int = 12
    directions: bool = False
    centre: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.item_width < 1:
            raise InvalidConfig(f"widths are {self.width} and {self.item_width}; both must be at least 1", field="geometry")


@dataclass(frozen=True)
class GeometryTask:
    """A task as the steps see it, prepared once.

    Args:
        items: what it holds.
        experts: `[E, N, D + 1]`, closed forms made comparable; zeros where the task does not allow one.
        allowed: `[E]`, boolean.
        base: `[N, D + 1]`, the baseline head, made comparable.
        scale: standard deviation of a weight of x_T.
        facts: `[TASK_FACTS]`.
        labelled, targets: `[M', D + 1]`, `[M', N]`: how far an error on each labelled item moves a head, the Newton way.
        pool: `[U', D + 1]`, likewise.
        mean: `[D]`, of the items; those ways are of heads on features less it.
        seen: `[U', D]`, the pool items that the steps look at.
        expert_answers: `[U', N]`, mean probabilities of the experts on them.
        nearest: `[U']`, the largest similarity of a pool item to a labelled one.
    """

    items: TaskItems
    experts: Tensor
    allowed: Tensor
    base: Tensor
    scale: float
    facts: Tensor
    labelled: Tensor
    targets: Tensor
    pool: Tensor
    mean: Tensor
    seen: Tensor
    expert_answers: Tensor
    nearest: Tensor


def describe(items: TaskItems, directions: Tensor | None = None) -> GeometryTask:
    """Prepare a task: its closed forms, and what its steps need; the baseline is `baseline_of(items)`.

    Args:
        directions: `[D, D]`, of a bundle that knows a domain.
    """
    features, targets = items.labelled
    heads = all_experts(items, directions)
    pool = some_of(items.pool)
    seen = pool if len(pool) else features
    names = list(heads)
    stacked = comparable(torch.stack([heads[name] for name in names]), seen)
    at = torch.tensor([EXPERTS.index(name) for name in names])
    experts = stacked.new_zeros(len(EXPERTS), *stacked.shape[1:]).index_copy(0, at.to(stacked.device), stacked)
    allowed = torch.zeros(len(EXPERTS), dtype=torch.bool)
    allowed[at] = True
    chosen = experts[EXPERTS.index(baseline_of(items))]
    together = torch.cat([features, pool])
    weights = torch.cat([features.new_ones(len(features)), features.new_full((len(pool),), POOL_WEIGHT)])
    mean = (weights[:, None] * together).sum(0) / weights.sum()
    ways = newton_ways(torch.cat([together - mean, together.new_ones(len(together), 1)], dim=1), weights)
    return GeometryTask(
        items=items,
        experts=experts,
        allowed=allowed.to(experts.device),
        base=chosen,
        scale=max(RESIDUAL * float(chosen[:, :-1].square().mean().sqrt()), LEAST_SCALE),
        facts=_task_facts(items, heads).to(experts),
        labelled=ways[: len(features)],
        targets=targets,
        pool=ways[len(features) :],
        mean=mean,
        seen=pool,
        expert_answers=torch.softmax(logits(experts, pool), dim=-1).mul(allowed.to(experts)[:, None, None]).sum(0)
        / allowed.sum(),
        nearest=(pool @ features.T).max(1).values if len(pool) else features.new_zeros(0),
    )


def newton_ways(inputs: Tensor, weights: Tensor) -> Tensor:
    """Rows of X H^-1 for H = X' diag(weights) X / 2 + I / 10, in whichever of the two spaces is smaller.

    Args:
        inputs: X, `[M, D + 1]`.
    """
    count, size = inputs.shape
    if count < size:
        gram = inputs @ inputs.T * (0.5 * weights) + 0.1 * torch.eye(count).to(inputs)
        return torch.linalg.solve(gram, inputs)
    curvature = 0.5 * inputs.T @ (weights[:, None] * inputs) + 0.1 * torch.eye(size).to(inputs)
    return torch.linalg.solve(curvature, inputs.T).T


def baseline_of(items: TaskItems) -> str:
    """The best closed form for what a task holds, by a rule read off validation sets (`DECISIONS.md`).

    Logistic regression with the name as one more example; with a pool, soft k-means up to one example a class and
    self-training above.
    """
    if not len(items.pool):
        return "logistic"
    return "pool_means" if float(items.counts.float().mean()) < 1.5 else "self_training"


def _task_facts(items: TaskItems, heads: Mapping[str, Tensor]) -> Tensor:
    shots, size = float(items.counts.float().mean()), len(items.pool)
    has_pool = float(size > 0)
    return torch.tensor([
        math.log(items.ways) / 3 - 1,
        math.log1p(shots) - 1,
        float(items.named.float().mean()),
        has_pool,
        has_pool * (math.log1p(size / items.ways) / 2 - 1),
        has_pool * math.log1p(shots),
        float(items.counts.float().std(unbiased=False)) / (1 + shots),
        has_pool * (math.log1p(size) / 3 - 2),
        has_pool * (4 * _inequality(heads["name_means"], items.pool) - 0.5),
    ])  # fmt: skip


def _inequality(head: Tensor, pool: Tensor) -> float:
    """How unequal the classes' shares of a pool are, as a head finds them: 0 for equal ones, 1 for one class alone."""
    if not len(pool):
        return 0.0
    _, shares = shares_under(head, pool)
    return 1 + float((shares * shares.log()).sum()) / math.log(len(shares))


class Geometry(nn.Module):
    """eps_phi(x_t, t, task), by way of the waypoint that step t leads to."""

    def __init__(self, config: GeometryConfig, schedule: Schedule) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        outputs = len(EXPERTS) + 1 + 4
        self.by_step = nn.Parameter(torch.zeros(schedule.steps + 1, outputs))
        self.by_task = nn.Linear(TASK_FACTS, outputs)
        self.hidden = nn.Linear(TASK_FACTS + STATE_FACTS, config.width)
        self.by_state = nn.Linear(config.width, outputs, bias=False)
        self.item_hidden = nn.Linear(ITEM_FACTS, config.item_width)
        self.item_weight = nn.Linear(config.item_width, 1)
        for layer in (self.by_task, self.by_state, self.item_weight):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.by_task.bias)
        with torch.no_grad():
            for name, (preference, growth) in (START_CENTRED if config.centre else START).items():
                self.by_task.bias[EXPERTS.index(name)] = preference
                self.by_task.weight[EXPERTS.index(name), EXAMPLES_FACT] = growth
            for name in ("prior_means", "prior_names"):
                self.by_task.weight[EXPERTS.index(name), SKEW_FACT] = SKEW_GROWTH
        nn.init.zeros_(self.item_weight.bias)

    def waypoint(self, head: Tensor, t: int, task: GeometryTask) -> Tensor:
        """The head `[N, D + 1]` that step t leads to, from the current one."""
        features, targets = task.items.labelled
        answers = torch.softmax(logits(head, features), dim=1)
        fit = (answers * targets).sum(1).mean()
        towards_labels = (answers - targets).T @ task.labelled
        pool = _PoolView(head, task) if len(task.pool) else None
        state = torch.cat([fit.reshape(1), pool.facts if pool else fit.new_zeros(STATE_FACTS - 1)])
        chosen = self.by_step[t] + self.by_task(task.facts)
        chosen = chosen + self.by_state(torch.tanh(self.hidden(torch.cat([task.facts, state]))))
        count = len(EXPERTS)
        allowed = F.pad(task.allowed, (0, 1), value=True)
        mixing = torch.softmax(chosen[: count + 1].masked_fill(~allowed, -torch.inf), dim=0)
        label_step, pool_step, sharpness, scale = chosen[count + 1 :]
        answer = torch.tensordot(mixing[:count], task.experts, dims=1) + mixing[count] * centred(head)
        gradient = towards_labels * F.softplus(label_step - 2)
        if pool:
            weight = torch.sigmoid(self.item_weight(torch.tanh(self.item_hidden(pool.item_facts))).squeeze(1))
            gradient = gradient + pool.towards_sharper(weight, torch.exp(0.7 + sharpness)) * F.softplus(pool_step - 2)
        answer = answer - centred(uncentre(gradient, task.mean))
        return answer * torch.exp(scale)

    def mixture(self, task: GeometryTask) -> Tensor:
        """The head `[N, D + 1]` that the task's facts alone choose: what the chain is worth is measured against it."""
        chosen = self.by_task(task.facts)
        mixing = torch.softmax(chosen[: len(EXPERTS)].masked_fill(~task.allowed, -torch.inf), dim=0)
        return torch.tensordot(mixing, task.experts, dims=1) * torch.exp(chosen[-1])

    def forward(self, x: Tensor, t: int, task: GeometryTask) -> Tensor:
        """eps_phi at x `[N, D + 1]` and step t."""
        from_x, from_waypoint = self.schedule.waypoint_factors[t]
        return from_x * x - from_waypoint * self.standardised_waypoint(x, t, task)

    def standardised_waypoint(self, x: Tensor, t: int, task: GeometryTask) -> Tensor:
        """The waypoint, less the base, in units of `task.scale`. The first step sees the base: x_T is but noise."""
        head = task.base if t == self.schedule.steps else task.base + task.scale * x
        return (self.waypoint(head, t, task) - task.base) / task.scale


class _PoolView:
    """What the current head says of the pool."""

    def __init__(self, head: Tensor, task: GeometryTask) -> None:
        ways = task.items.ways
        self.task, self.logits = task, logits(head, task.seen)
        self.answers = torch.softmax(self.logits, dim=1)
        top = self.answers.topk(min(2, ways), dim=1).values
        entropy = -(self.answers * self.answers.clamp_min(1e-9).log()).sum(1) / math.log(ways)
        same = (self.answers * task.expert_answers).sum(1)
        mass = self.answers.mean(0)
        spread = (mass * (ways * mass).clamp_min(1e-6).log()).sum()
        size = torch.full_like(entropy, math.log(ways) / 3 - 1)
        self.item_facts = torch.stack([top[:, 0], top[:, 0] - top[:, 1], entropy, same, task.nearest, size], dim=1)
        self.facts = torch.stack([top[:, 0].mean(), entropy.mean(), same.mean(), spread, task.nearest.mean()])

    def towards_sharper(self, weight: Tensor, sharpness: Tensor) -> Tensor:
        """Newton way `[N, D + 1]` of the cross entropy from the answers, sharpened, to the answers."""
        sharper = torch.softmax(self.logits * sharpness, dim=1)
        return ((self.answers - sharper) * weight[:, None]).T @ self.task.pool
