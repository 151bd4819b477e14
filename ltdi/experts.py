"""Closed forms of one task, from whatever it holds: examples, names of classes, and a pool without labels.

They are the material of the `geometry` recipe: its chain mixes them, and goes on from the mixture. Unlike
`ltdi.baselines` they take one task at a time, with any number of examples in each class. Heads are `[N, D + 1]`:
the weights of each class and, last, its bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

POOL_SEEN = 256  # pool items that the steps look at, and folds; the closed forms of a whole task see all of them
SHARPNESS = 10.0  # of logits from class means of unit vectors: 2 SHARPNESS times the inner product
LEAST_CURVATURE = 0.12  # of the quadratic that a step of logistic regression solves; for N classes sqrt(1 / 2 N)
SHARED_CENTRE = 0.3  # examples a class at which names are centred half by items and half by themselves
SPREAD = 4.0  # standard deviation of an expert's logits over items and classes, before they are mixed
REGRESSION_STEPS, FURTHER_STEPS = 20, 8  # of logistic regression; from one solution to that of a weaker penalty
PRIOR_ROUNDS = 20  # of expectation maximisation for the classes' shares of a pool
EXPERTS = (
    "means", "cosine", "name_means", "names", "ridge", "ridge_loose", "logistic", "logistic_loose",
    "pool_means", "pool_means_full", "self_training", "prior_means", "prior_names", "directed_means", "directed_pool",
)  # fmt: skip


@dataclass(frozen=True)
class TaskItems:
    """The features of a task, of unit length.

    Args:
        examples: `[M, D]`.
        class_index: `[M]`, the class of each, 0..N - 1.
        ways: N.
        names: `[N, D]`, the features of the classes' descriptions; rows of classes without one are not looked at.
        named: `[N]`, boolean: which classes have a description.
        pool: `[U, D]`, items without labels.
        mean: `[D]`, what was subtracted from items before they were brought to unit length; None for nothing.
    """

    examples: Tensor
    class_index: Tensor
    ways: int
    names: Tensor
    named: Tensor
    pool: Tensor
    mean: Tensor | None = None

    @classmethod
    def of(
        cls, examples: Tensor, class_index: Tensor, ways: int, names: Tensor | None = None,
        named: Tensor | None = None, pool: Tensor | None = None, centre: bool = False,
    ) -> TaskItems:
        """A task from what there is of it; features are brought to unit length.

        Args:
            centre: subtract a mean first, for encoders of unknown mean (`_centres`).
        """
        size = examples.shape[-1]
        some = examples if names is None else names
        if names is None:
            names, named = examples.new_zeros(ways, size), torch.zeros(ways, dtype=torch.bool)
        elif named is None:
            named = torch.ones(ways, dtype=torch.bool)
        pool = some.new_zeros(0, size) if pool is None else pool
        named, mean = named.to(names.device), None
        if centre:
            mean, of_names = _centres(examples, pool, names[named], ways)
            examples, names, pool = examples - mean, names - of_names, pool - mean
        return cls(unit(examples), class_index, ways, unit(names), named, unit(pool), mean)

    def seen(self, features: Tensor) -> Tensor:
        """Further features `[..., D]` as those of the task were brought to their form."""
        return unit(features if self.mean is None else features - self.mean)

    def kept(self, examples: Tensor) -> TaskItems:
        """The same task with only the examples `[...]` (integers), and `POOL_SEEN` items of the pool at most."""
        return replace(
            self, examples=self.examples[examples], class_index=self.class_index[examples], pool=some_of(self.pool)
        )

    @cached_property
    def counts(self) -> Tensor:
        """Examples of each class, `[N]`."""
        return torch.bincount(self.class_index, minlength=self.ways)

    @cached_property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """Examples and names as `[M', D]`, and their classes one-hot, `[M', N]`."""
        rows = self.named.nonzero().squeeze(1)
        index = torch.cat([self.class_index, rows])
        return torch.cat([self.examples, self.names[rows]]), F.one_hot(index, self.ways).to(self.examples)


def _centres(examples: Tensor, pool: Tensor, names: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """What is subtracted from items, and what from names, each `[D]`.

    Of items, their mean, drawn to that of the examples as these grow in number: examples are drawn evenly over classes,
    a pool need not be. Of names, the same while nothing else tells where items lie, then their own mean, because names
    and items are texts of two kinds.
    """
    items = torch.cat([examples, pool])
    count = len(examples)
    mean = (examples.sum(0) + ways * (items if len(items) else names).mean(0)) / (count + ways)
    if not len(names):
        return mean, mean
    apart = count / (count + SHARED_CENTRE * ways)
    return mean, apart * names.mean(0) + (1 - apart) * mean


def some_of(items: Tensor, most: int = POOL_SEEN) -> Tensor:
    """At most so many of the items `[U, D]`, evenly from the first to the last, because logs come sorted."""
    if len(items) <= most:
        return items
    return items[torch.linspace(0, len(items) - 1, most, device=items.device).round().long()]


def unit(features: Tensor) -> Tensor:
    """Features at unit length; zeros stay zeros."""
    return F.normalize(features, dim=-1)


def logits(head: Tensor, features: Tensor) -> Tensor:
    """Logits `[..., M, N]` of features `[M, D]` under heads `[..., N, D + 1]`."""
    return features @ head[..., :-1].transpose(-1, -2) + head[..., -1].unsqueeze(-2)


def centred(head: Tensor) -> Tensor:
    """The same answers, with logits whose mean over classes is 0."""
    return head - head.mean(-2, keepdim=True)


def from_means(means: Tensor) -> Tensor:
    """The head of the nearest mean, for means `[N, D]` of unit vectors."""
    return SHARPNESS * torch.cat([2 * means, -means.square().sum(1, keepdim=True)], dim=1)


class LogisticRegression:
    """Multinomial logistic regression on weighted items, by accelerated majorisation; fitted again for other targets.

    Minimises the weighted sum of cross entropies + |W|^2 / (2 C), W with its bias. Each step solves a quadratic as
    Böhning (1992) puts above the loss, in the space of items where these are fewer than features, else in that of
    features; momentum restarts where it points uphill. From 0, the first step is ridge regression. Böhning's curvature,
    1/2, is that of two classes which share an item evenly; among many classes it is far too steep, and a smaller one
    gets there in half the steps (`DECISIONS.md`).

    Args:
        features: `[M, D]`.
        weights: `[M]`, above 0.
        ways: N.
        inverse_strength: C.
    """

    def __init__(self, features: Tensor, weights: Tensor, ways: int, inverse_strength: float = 10.0) -> None:
        curvature = max(LEAST_CURVATURE, 0.5 * (2 / ways) ** 0.5)
        self.mean = (weights[:, None] * features).sum(0) / weights.sum()
        self.inputs = x = torch.cat([features - self.mean, features.new_ones(len(features), 1)], dim=1)
        self.weights, self.inverse_strength = weights[:, None], inverse_strength
        self.by_item = len(x) <= x.shape[1]
        if self.by_item:
            self.gram, self.penalty = x @ x.T, 1 / (inverse_strength * self.weights)
            self.solve = torch.linalg.inv(curvature * self.gram + torch.diag(self.penalty.squeeze(1)))
        else:
            steep = curvature * x.T @ (self.weights * x)
            self.solve = torch.linalg.inv(steep + torch.eye(x.shape[1]).to(x) / inverse_strength)
        self.found: Tensor | None = None

    def after(self, other: LogisticRegression) -> LogisticRegression:
        """Itself; the next fit goes on from that of another on the same items."""
        self.found = other.found
        return self

    def fit(self, targets: Tensor, iterations: int) -> Tensor:
        """The head `[N, D + 1]` for targets `[M, N]`, each row a distribution; goes on from the fit before."""
        x = self.inputs
        shape = targets.shape if self.by_item else (targets.shape[1], x.shape[1])
        found = ahead = x.new_zeros(shape) if self.found is None else self.found
        momentum = 1.0
        for _ in range(iterations):
            moved = ahead - self._way(ahead, targets)
            uphill = ((ahead - moved) * (self.gram @ (moved - found) if self.by_item else moved - found)).sum()
            momentum = 1.0 if uphill > 0 else momentum
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = moved + (momentum - 1) / following * (moved - found)
            found, momentum = moved, following
        self.found = found
        return uncentre(found.T @ x if self.by_item else found, self.mean)

    def _way(self, found: Tensor, targets: Tensor) -> Tensor:
        """The Newton step of the quadratic above the loss."""
        if self.by_item:
            return self.solve @ (torch.softmax(self.gram @ found, dim=1) - targets + found * self.penalty)
        error = (torch.softmax(self.inputs @ found.T, dim=1) - targets) * self.weights
        return (error.T @ self.inputs + found / self.inverse_strength) @ self.solve


def uncentre(head: Tensor, mean: Tensor) -> Tensor:
    """A head `[N, D + 1]` on features less `mean` `[D]` as one on features."""
    return torch.cat([head[:, :-1], (head[:, -1] - head[:, :-1] @ mean)[:, None]], dim=1)


def soft_means(means: Tensor, counts: Tensor, pool: Tensor, sharpness: float, weight: float, rounds: int = 3) -> Tensor:
    """Soft k-means that starts at class means and keeps their items (Ren et al., 2018): `[N, D]`.

    Args:
        means: `[N, D]`, of the labelled items.
        counts: `[N]`, how many they are.
        pool: `[U, D]`.
        sharpness: of the assignment, a softmax of minus squared distances times it.
        weight: of a pool item beside a labelled one.
    """
    moved = means
    for _ in range(rounds):
        near = torch.softmax((pool @ (2 * moved.T) - moved.square().sum(1)) * sharpness, dim=1)
        total = means * counts[:, None] + weight * (near.T @ pool)
        moved = total / (counts + weight * near.sum(0)).clamp_min(1e-9)[:, None]
    return moved


class SelfTraining:
    """Logistic regression on labelled items and on the pool, labelled by the head of the round before.

    Args:
        weight: of a pool item beside a labelled one.
        sharpness: standard deviation that the logits are brought to before they become labels.
    """

    def __init__(self, items: TaskItems, weight: float = 0.3, sharpness: float = 4.0) -> None:
        features, self._targets = items.labelled
        weights = torch.cat([features.new_ones(len(features)), features.new_full((len(items.pool),), weight)])
        self._regression = LogisticRegression(torch.cat([features, items.pool]), weights, items.ways)
        self._pool, self._sharpness = items.pool, sharpness

    def fit(self, start: Tensor, iterations: tuple[int, ...]) -> Tensor:
        """The head `[N, D + 1]` from a first head of that shape, with `iterations` of the solver in each round."""
        head = start
        for count in iterations:
            answers = logits(head, self._pool)
            guessed = torch.softmax(answers * (self._sharpness / answers.std().clamp_min(1e-6)), dim=1)
            head = self._regression.fit(torch.cat([self._targets, guessed]), count)
        return head


def directed(prototypes: Tensor, directions: Tensor) -> Tensor:
    """Where the items of classes lie whose names, examples, or both lie at `prototypes` `[N, D]`, at unit length.

    What is known of a domain's directions (`training.directions`) moves them by a linear map.

    Args:
        directions: `[D, D]`.
    """
    prototypes = unit(prototypes)
    return unit(prototypes + prototypes @ directions)


def all_experts(items: TaskItems, directions: Tensor | None = None) -> dict[str, Tensor]:
    """The heads of all closed forms that the task allows, in the order of `EXPERTS`.

    A class's description counts among its examples; for `name_means` twice, for `names` alone.

    Args:
        directions: `[D, D]`, of a bundle that knows a domain.
    """
    features, targets = items.labelled
    ones, counts = features.new_ones(len(features)), targets.sum(0)
    means = targets.T @ features / counts.clamp_min(1)[:, None]
    named = items.named.to(features)[:, None]
    regression = LogisticRegression(features, ones, items.ways)
    loose = LogisticRegression(features, ones, items.ways, 30.0)
    heads = {
        "means": from_means(means),
        "cosine": from_means(unit(means)),
        "name_means": from_means((means * counts[:, None] + named * items.names) / (counts[:, None] + named).clamp_min(1)),
        "ridge": regression.fit(targets, 1),
        "ridge_loose": loose.fit(targets, 1),
        "logistic": regression.fit(targets, REGRESSION_STEPS),
        "logistic_loose": loose.after(regression).fit(targets, FURTHER_STEPS),
    }
    if bool(items.named.any()):
        heads["names"] = from_means(torch.where(items.named[:, None], items.names, means))
    if len(items.pool):
        for name, weight in (("pool_means", 0.3), ("pool_means_full", 1.0)):
            heads[name] = from_means(soft_means(means, counts, items.pool, 20.0, weight))
        heads["self_training"] = SelfTraining(items).fit(heads["logistic"], (8, 4, 4))
        for source, name in (("name_means", "prior_means"), ("names", "prior_names")):
            if source in heads:
                heads[name] = with_prior(heads[source], items.pool)
    if directions is not None:
        moved = directed(means, directions)
        heads["directed_means"] = from_means(moved)
        if len(items.pool):
            heads["directed_pool"] = from_means(soft_means(moved, counts, items.pool, 20.0, 0.3))
    return {name: heads[name] for name in EXPERTS if name in heads}


def with_prior(head: Tensor, pool: Tensor) -> Tensor:
    """A head `[N, D + 1]`, made comparable, whose biases know how large a share of a pool each class has.

    Examples and names say nothing of that; a pool does.
    """
    known, shares = shares_under(head, pool)
    return torch.cat([known[:, :-1], (known[:, -1] + (shares * len(shares)).log())[:, None]], dim=1)


def shares_under(head: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """A head made comparable, `[N, D + 1]`, and the shares `[N]` of its classes in a pool."""
    known = comparable(head[None], pool)[0]
    return known, class_shares(torch.softmax(logits(known, pool), dim=1))


def class_shares(answers: Tensor) -> Tensor:
    """Shares of classes in a pool, `[N]`, from answers `[U, N]` that took all classes for equally frequent.

    Expectation maximisation of Saerens, Latinne and Decaestecker (2002), drawn to equal shares by an item a class.
    """
    size, ways = answers.shape
    shares = answers.new_full((ways,), 1 / ways)
    for _ in range(PRIOR_ROUNDS):
        counted = shares * (answers.T @ (1 / (answers @ shares)))
        shares = (counted + 1) / (size + ways)
    return shares


def comparable(heads: Tensor, seen: Tensor) -> Tensor:
    """Heads `[E, N, D + 1]`, centred, with logits of standard deviation `SPREAD` on the items `seen` `[M, D]`."""
    heads = centred(heads)
    spread = logits(heads, seen).flatten(1).std(1).clamp_min(1e-6)
    return heads * (SPREAD / spread)[:, None, None]
