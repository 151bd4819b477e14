"""Where the mean of many examples of a class lies, estimated from the few at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltdi import baselines
from ltdi.embedding import ClassStatistics


class MeanEstimator(nn.Module):
    """A linear map from what is seen of one example to the way from there to its class's mean.

    Fitted in closed form on the base classes (`training.estimator`): the linear empirical-Bayes estimate of a class
    mean; where a config says so, trained on from there with the generator. What it says of all classes of a task alike
    is left out: in a domain of another mean that is its error, and among the base classes it tells nothing apart. From K examples the way is shorter, by 3 / (2 K + 1). Both are
    measured in `DECISIONS.md`.

    Args:
        feature_size: D.
        views: whether it sees the mean of the example's views beside its features.
    """

    def __init__(self, feature_size: int, views: bool) -> None:
        super().__init__()
        inputs = (2 if views else 1) * feature_size
        self.weight = nn.Parameter(torch.zeros(feature_size, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(feature_size), requires_grad=False)

    def forward(self, statistics: ClassStatistics) -> Tensor:
        """`[B, N, D]`, from the mean of each class's examples to the estimate; rows have the same bytes in any batch."""
        seen = statistics.means
        if self.weight.shape[1] > seen.shape[-1]:
            seen = torch.cat([seen, statistics.view_means], dim=-1)
        way = baselines.rowwise_product(seen, self.weight.T) + self.bias
        way = way - way.mean(-2, keepdim=True)
        return way * (3 / (2 * statistics.counts.clamp_min(1) + 1)).unsqueeze(-1)
