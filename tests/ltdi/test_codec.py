"""Round trips between weights and the chain's tensor."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from ltdi.codec import Layout, Standardiser


def test_decode_undoes_encode() -> None:
    items = torch.randn(50, 3, 7, dtype=torch.float64) * torch.arange(1, 8) + 5
    codec = Standardiser.fit(items)
    torch.testing.assert_close(codec.decode(codec.encode(items)), items)


def test_encoded_items_have_mean_0_and_deviation_1() -> None:
    encoded = Standardiser.fit(items := torch.randn(400, 3, 7, dtype=torch.float64) * 9 - 4).encode(items).flatten(0, 1)
    torch.testing.assert_close(encoded.mean(0), torch.zeros(7, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(encoded.std(0), torch.ones(7, dtype=torch.float64))


def test_a_constant_weight_stays_finite() -> None:
    codec = Standardiser.fit(torch.ones(5, 2))
    assert torch.isfinite(codec.encode(torch.ones(5, 2))).all()


@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3)])
def test_join_undoes_split(sizes: tuple[int, ...]) -> None:
    layout = Layout(sizes)
    flat = torch.randn(2, layout.length)
    layers = layout.split(flat)
    assert [weight.shape[1:] for weight, _ in layers] == [(o, i) for i, o in pairwise(sizes)]
    assert torch.equal(layout.join(layers), flat)


def test_the_length_counts_weights_and_biases() -> None:
    assert Layout((4, 6, 3)).length == 6 * 4 + 6 + 3 * 6 + 3


def test_logits_are_those_of_linear_layers_with_relu_between() -> None:
    layout, features = Layout((4, 6, 3)), torch.randn(2, 5, 4)
    flat = torch.randn(2, layout.length)
    for task in range(2):
        (w0, b0), (w1, b1) = layout.split(flat[task])
        expected = F.linear(F.relu(F.linear(features[task], w0, b0)), w1, b1)
        torch.testing.assert_close(layout.logits(flat, features)[task], expected)
