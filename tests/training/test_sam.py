import torch

from training.sam import sam_gradient


def quadratic(weights):
    """1/2 a |w|^2 of each task, a = 1, 2, 3."""
    curvature = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return curvature / 2 * weights.square().flatten(1).sum(1)


def test_on_a_quadratic_it_is_the_gradient_a_radius_further_out():
    weights = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 2.0]], dtype=torch.float64)
    found = sam_gradient(quadratic, weights, 0.5)
    # g = a w, eps = rho w / |w|, so the answer is a (1 + rho / |w|) w, with |w| = 5, 1, 2
    expected = torch.tensor([[3.3, 4.4], [1.8, 2.4], [0.0, 7.5]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_each_task_is_perturbed_by_itself():
    weights = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = sam_gradient(quadratic, weights, 0.3)
    weights[1:] *= 100
    torch.testing.assert_close(sam_gradient(quadratic, weights, 0.3)[0], together[0])


def test_radius_0_is_the_plain_gradient():
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    expected = weights * torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(sam_gradient(quadratic, weights, 0.0), expected)


def test_a_stationary_point_stays_finite():
    assert sam_gradient(quadratic, torch.zeros(3, 4, dtype=torch.float64), 1.0).eq(0).all()


def test_the_weights_and_gradient_mode_are_left_alone():
    weights = torch.ones(3, 2, dtype=torch.float64)
    with torch.no_grad():
        sam_gradient(quadratic, weights, 1.0)
        assert not torch.is_grad_enabled()
    assert not weights.requires_grad
    assert weights.eq(1).all()
