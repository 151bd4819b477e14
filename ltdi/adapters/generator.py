"""From a support set to a LoRA adapter with its classifier; no gradient is taken.

support tokens -> frozen features [M, D] -> candidates among the stored tasks [C]
-> features under each candidate [C, M, D] -> evidence [C, F] -> x_T .. x_0 [W, K] -> B [layers, 2, D, rank]
-> features under the adapter [M, D] -> classifier [N, D + 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.adapters.bank import Bank, candidates, evidence, retrieval, watched
from ltdi.adapters.support_heads import NearestMeans, fitted
from ltdi.bodies.adapted import AdaptedBert, Tokens, mean_pooled
from ltdi.denoisers.adapter_tokens import AdapterCondition, AdapterTokens
from ltdi.sampler import sample

CANDIDATES = 4


@dataclass(frozen=True)
class Generated:
    """An adapter: B `[layers, 2, D, rank]`, its classifier `[N, D + 1]`, the candidates `[C]` and what each counted `[C]`."""

    lora_b: Tensor
    classifier: Tensor
    candidates: Tensor
    weights: Tensor


class AdapterGenerator(nn.Module):
    """The denoiser and the head's two numbers; a bank is given at each call."""

    def __init__(self, denoiser: AdapterTokens) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.log_head = nn.Parameter(torch.tensor([0.0, 1.4]))

    @property
    def head(self) -> NearestMeans:
        """The classifier's closed form while weights are learned."""
        return NearestMeans(*self.log_head.exp())

    def classifier(self, features: Tensor, labels: Tensor, ways: int, bank: Bank, chosen: Tensor, weights: Tensor) -> Tensor:
        """`[N, D + 1]` under an adapter that weighs the candidates `[C]` by `[C]`."""
        by_task = torch.zeros(len(bank.pairs)).scatter(0, chosen, weights)
        used = (by_task[bank.owner] > 0.01).nonzero().flatten()
        return fitted(features, labels, ways, bank.own[used], by_task[bank.owner[used]] * self.log_head[0].exp())

    def condition(
        self, encoder: AdaptedBert, bank: Bank, support: Tokens, labels: Tensor, ways: int, names: Tensor | None = None
    ) -> tuple[AdapterCondition, Tensor]:
        """What the chain is told of a task, and the candidates `[C]`.

        Args:
            names: `[N, D]`, of the classes on the frozen body; None where they say nothing.
        """
        rows = watched(labels, ways)
        support, labels = support.take(rows), labels[rows]
        frozen = mean_pooled(encoder.hidden(support), support.mask)
        known = retrieval(bank, frozen, labels, ways, bool(support.kinds.any()), names)
        chosen = candidates(bank, known.score, torch.ones(len(bank.pairs)), CANDIDATES)
        told = evidence(bank, chosen, pooled_each(encoder, support, bank.adapters(chosen)), known, labels, ways)[None]
        return AdapterCondition(told, bank.trajectories[chosen][None], torch.ones(1, len(chosen))), chosen

    def chain(self, noise: Tensor, condition: AdapterCondition) -> tuple[Tensor, Tensor]:
        """x_0 `[B, W, K]` by Eq. 1 from x_T, and the candidates' weights `[B, C]`."""
        x = sample(lambda x, t: self.denoiser(x, t, condition), noise, self.denoiser.schedule)
        return x, self.denoiser.weigh(condition)

    @torch.no_grad()
    def generate(
        self, encoder: AdaptedBert, bank: Bank, support: Tokens, labels: Tensor, ways: int, seed: int = 0,
        names: Tensor | None = None,
    ) -> Generated:  # fmt: skip
        """The adapter of a task from its support set, and its classes' names as in `condition`."""
        condition, chosen = self.condition(encoder, bank, support, labels, ways, names)
        noise = torch.randn(1, *bank.shape, generator=torch.Generator().manual_seed(seed))
        x, weights = self.chain(noise, condition)
        lora_b = bank.decode(x)
        features = pooled_each(encoder, support, lora_b)[0]
        head = self.classifier(features, labels, ways, bank, chosen, weights[0])
        return Generated(lora_b[0], head, chosen, weights[0])


def pooled_each(encoder: AdaptedBert, tokens: Tokens, lora_b: Tensor) -> Tensor:
    """Pooler features of the same texts under each of C adapters `[C, layers, 2, D, rank]`: `[C, M, D]`."""
    count = len(lora_b)
    repeated = Tokens(*(part.repeat(count, 1) for part in (tokens.ids, tokens.kinds, tokens.mask)))
    return encoder.pooler(encoder.hidden(repeated, lora_b)[:, 0]).view(count, len(tokens), -1)
