"""Statistics of classes, and the tokens made of them."""

from __future__ import annotations

import math

import torch

from ltdi.embedding import ClassStatistics, embed_task, token_size


def uneven() -> tuple[torch.Tensor, list[list[int]]]:
    """Features of two tasks of three classes, and how many examples each class has."""
    counts = [[1, 4, 2], [3, 1, 5]]
    features = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    return features, counts


def index_of(counts: list[list[int]]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(6), torch.tensor(counts).flatten())


def test_statistics_of_uneven_classes_are_those_of_a_plain_loop() -> None:
    features, counts = uneven()
    statistics = ClassStatistics(features, index_of(counts), 2, 3)
    parts = iter(features.split([count for row in counts for count in row]))
    for task in range(2):
        for row in range(3):
            part = next(parts)
            assert statistics.counts[task, row] == len(part)
            torch.testing.assert_close(statistics.means[task, row], part.mean(0))
            torch.testing.assert_close(statistics.variances[task, row], part.var(0, correction=0))


def test_one_example_a_class_gives_the_bytes_that_it_gives_beside_larger_classes() -> None:
    features = torch.randn(2, 6)
    features[0, 0] = -0.0
    alone = ClassStatistics(features, torch.arange(2), 1, 2)
    beside = ClassStatistics(torch.cat([features, torch.randn(4, 6)]), torch.tensor([0, 1, 2, 2, 3, 3]), 2, 2)
    assert alone.means.numpy().tobytes() == beside.means[:1].contiguous().numpy().tobytes()
    assert torch.equal(alone.variances, beside.variances[:1])


def test_a_token_holds_mean_spread_and_count() -> None:
    features, counts = uneven()
    centre, scale = torch.full((6,), 2.0), torch.full((6,), 4.0)
    statistics = ClassStatistics(features, index_of(counts), 2, 3)
    tokens = embed_task(statistics, centre, scale)
    assert tokens.shape == (2, 3, token_size(6))
    torch.testing.assert_close(tokens[..., :6], (statistics.means - 2) / 4)
    torch.testing.assert_close(tokens[..., 6:12], statistics.variances.sqrt() / 4, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tokens[0, 1, 12:], torch.tensor([1 / 4, math.log(4) / 3, 0.0]))


def test_views_add_a_flag_their_offset_and_their_spread_or_nothing() -> None:
    features, counts = uneven()
    views = torch.randn(16, 2, 6, generator=torch.Generator().manual_seed(1))
    centre, scale = torch.zeros(6), torch.full((6,), 4.0)
    seen, blind = (ClassStatistics(features, index_of(counts), 2, 3, given) for given in (views, None))
    tokens = embed_task(seen, centre, scale, views=True)
    assert tokens.shape == (2, 3, token_size(6, views=True))
    plain = token_size(6)
    torch.testing.assert_close(tokens[..., :plain], embed_task(seen, centre, scale))
    assert (tokens[..., plain] == 1).all()
    first = views[1:5].mean(0)
    torch.testing.assert_close(tokens[0, 1, plain + 1 : plain + 7], (first[0] - features[1:5].mean(0)) / 4)
    torch.testing.assert_close(tokens[0, 1, plain + 7 :], first[1] / 4)
    assert (embed_task(blind, centre, scale, views=True)[..., plain:] == 0).all()
