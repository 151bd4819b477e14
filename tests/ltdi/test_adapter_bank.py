"""From stored adapters to a new one: known answers, symmetries, round trips."""

from __future__ import annotations

import torch

from ltdi.adapter_bank import AdapterGenerator, Bank, PriorHead, make_bank, relations, separation
from ltdi.baselines import ridge
from ltdi.denoisers.adapter_tokens import AdapterCondition, AdapterTokens, AdapterTokensConfig
from ltdi.sampler import sample
from ltdi.schedule import Schedule
from tests.tiny_bert import tiny_bert, tiny_tokens


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_bank(tasks: int = 5, components: int = 5) -> tuple[Bank, torch.Tensor]:
    waypoints = draw(tasks, 4, 2, 2, 16, 2, seed=1)
    heads = [draw(2 + i % 2, 17, seed=10 + i) for i in range(tasks)]
    return make_bank(draw(2, 2, 16, 2), waypoints, heads, [i == 0 for i in range(tasks)], components), waypoints


def a_generator() -> AdapterGenerator:
    torch.manual_seed(0)
    return AdapterGenerator(AdapterTokens(AdapterTokensConfig(), Schedule(), 4), (2, 2, 16, 2))


def test_with_as_many_components_as_tasks_a_stored_adapter_comes_back() -> None:
    bank, waypoints = a_bank()
    assert torch.allclose(bank.decode(bank.trajectories[:, 0]), waypoints[:, 0], atol=1e-4)


def test_coordinates_zero_are_the_anchor() -> None:
    bank, _ = a_bank()
    assert torch.equal(bank.decode(torch.zeros(1, *bank.shape))[0], bank.anchor)


def test_a_chain_told_of_one_task_lands_on_its_waypoints() -> None:
    bank, _ = a_bank()
    denoiser = a_generator().denoiser
    told = torch.zeros(1, 5, 5)
    told[0, 3, 0] = 100.0
    condition = AdapterCondition(told, bank.trajectories, torch.ones(1, 5))
    seen = {}
    x = sample(lambda x, t: denoiser(x, t, condition), draw(1, *bank.shape), denoiser.schedule, seen.__setitem__)
    for i in range(3):
        assert torch.allclose(seen[denoiser.schedule.waypoint_step(i)][0], bank.trajectories[3, i], atol=1e-3)
    assert torch.equal(x, seen[0])


def test_a_task_that_is_not_allowed_counts_nothing() -> None:
    bank, _ = a_bank()
    told = torch.zeros(1, 5, 5)
    told[0, 3, 0] = 100.0
    allowed = torch.ones(1, 5)
    allowed[0, 3] = 0
    weights = a_generator().denoiser.weigh(draw(1, *bank.shape), 5, AdapterCondition(told, bank.trajectories, allowed))
    assert weights[0, 3] == 0
    assert weights.sum() < 1


def test_separation_is_one_where_a_value_tells_the_classes_and_about_nothing_by_chance() -> None:
    labels = torch.arange(2).repeat_interleave(16)
    values = torch.cat([labels[:, None].float(), draw(32, 400)], dim=1)
    share = separation(values, labels, 2)
    assert share[0] > 0.999
    assert abs(share[1:].mean()) < 0.01


def test_relations_do_not_depend_on_names_or_order_of_the_classes() -> None:
    bank, _ = a_bank()
    features, labels = draw(12, 16, seed=4), torch.arange(3).repeat_interleave(4)
    one = relations(bank, features, labels, 3, False)
    other = relations(bank, features, torch.tensor([2, 0, 1])[labels], 3, False)
    assert torch.allclose(one, other, atol=1e-6)
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(one, relations(bank, features[mixed], labels[mixed], 3, False), atol=1e-5)


def test_the_head_without_related_tasks_is_ridge_regression() -> None:
    bank, _ = a_bank()
    head, features, labels = PriorHead(), draw(8, 16, seed=5), torch.arange(2).repeat_interleave(4)
    made = head(features, labels, 2, bank, torch.zeros(5))
    length = (features - features.mean(0)).norm(dim=1).mean()
    wanted = ridge(((features - features.mean(0)) / length).view(1, 2, 4, 16), head.log_lambda.exp().item())[0]
    new = draw(6, 16, seed=6)
    scaled = (new - features.mean(0)) / length
    scores = new @ made[:, :-1].T + made[:, -1]
    expected = scaled @ wanted[:, :-1].T * head.log_scale.exp() + wanted[:, -1]
    assert torch.allclose(scores, expected, atol=1e-4)


def test_a_related_classifier_pulls_the_head_towards_its_direction() -> None:
    bank, _ = a_bank()
    features, labels = draw(8, 16, seed=7), torch.arange(2).repeat_interleave(4)
    features = features + 0.5 * (2 * labels[:, None] - 1) * bank.directions[0]
    cosines = []
    for weight in (0.0, 1.0):
        weights = torch.zeros(5)
        weights[0] = weight
        row = PriorHead()(features, labels, 2, bank, weights)[1, :-1]
        cosines.append(float(torch.cosine_similarity(row, bank.directions[0], dim=0)))
    assert cosines[1] > cosines[0]


def test_the_same_support_and_seed_give_the_same_adapter() -> None:
    bank, _ = a_bank()
    encoder, labels = tiny_bert(), torch.arange(2).repeat_interleave(4)
    first, second = (a_generator().generate(encoder, bank, tiny_tokens(8), labels, 2, seed=3) for _ in range(2))
    assert torch.equal(first.lora_b, second.lora_b)
    assert torch.equal(first.classifier, second.classifier)
    assert first.lora_b.shape == (2, 2, 16, 2)
    assert first.classifier.shape == (2, 17)
    assert not first.classifier.requires_grad
