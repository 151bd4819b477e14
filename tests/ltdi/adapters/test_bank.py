"""From stored adapters to a new one: known answers, symmetries, round trips."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ltdi.adapters.bank import (
    Bank,
    Retrieval,
    called,
    candidates,
    evidence,
    likeness,
    make_bank,
    retrieve,
    separation,
    watched,
)
from ltdi.adapters.generator import AdapterGenerator, pooled_each
from ltdi.adapters.support_heads import NearestMeans, fitted, least_entropy, left_out, left_out_means, stretched
from ltdi.baselines import class_means, logits
from ltdi.denoisers.adapter_tokens import FIRST, AdapterCondition, AdapterTokens, AdapterTokensConfig
from ltdi.sampler import sample
from ltdi.schedule import Schedule, ScheduleConfig
from tests.tiny_bert import tiny_bert, tiny_tokens

TWO = torch.arange(2).repeat_interleave(4)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_bank(tasks: int = 5, components: int = 6) -> tuple[Bank, torch.Tensor]:
    """Five tasks and the default; the first is on pairs."""
    waypoints = draw(tasks, 4, 2, 2, 16, 2, seed=1)
    heads = [[draw(2 + i % 2, 17, seed=s + i) for i in range(tasks)] for s in (10, 20)]
    bank = make_bank(draw(2, 2, 16, 2), waypoints, draw(2, 2, 16, 2, seed=5), *heads, [i == 0 for i in range(tasks)], F.normalize(draw(tasks, 16, seed=6)), [draw(2, 16, seed=30 + i) for i in range(tasks)], components)
    return bank, waypoints


def a_generator() -> AdapterGenerator:
    torch.manual_seed(0)
    return AdapterGenerator(AdapterTokens(AdapterTokensConfig(), Schedule()))


def test_with_as_many_components_as_tasks_a_stored_adapter_comes_back() -> None:
    bank, waypoints = a_bank()
    assert torch.allclose(bank.adapters(torch.arange(5)), waypoints[:, 0], atol=1e-4)
    assert torch.allclose(bank.adapters(torch.tensor([5]))[0], draw(2, 2, 16, 2, seed=5), atol=1e-4)


def test_coordinates_zero_are_the_start() -> None:
    bank, _ = a_bank()
    assert torch.equal(bank.decode(torch.zeros(1, *bank.shape))[0], bank.start)


def test_a_chain_told_of_one_task_lands_on_its_waypoints() -> None:
    bank, _ = a_bank()
    denoiser = a_generator().denoiser
    told = torch.zeros(1, 6, 10)
    told[0, 3, FIRST] = 10.0
    condition = AdapterCondition(told, bank.trajectories[None], torch.ones(1, 6))
    seen = {}
    x = sample(lambda x, t: denoiser(x, t, condition), draw(1, *bank.shape), denoiser.schedule, seen.__setitem__)
    for i in range(3):
        assert torch.allclose(seen[denoiser.schedule.waypoint_step(i)][0], bank.trajectories[3, i], atol=1e-3)
    assert torch.equal(x, seen[0])


def test_a_candidate_that_is_not_allowed_counts_nothing() -> None:
    bank, _ = a_bank()
    told, allowed = torch.zeros(1, 6, 10), torch.ones(1, 6)
    told[0, 3, FIRST], allowed[0, 3] = 10.0, 0
    weights = a_generator().denoiser.weigh(AdapterCondition(told, bank.trajectories[None], allowed))
    assert weights[0, 3] == 0
    assert torch.allclose(weights.sum(), torch.tensor(1.0))


def test_separation_is_one_where_a_value_tells_the_classes_and_about_nothing_by_chance() -> None:
    labels = torch.arange(2).repeat_interleave(16)
    share = separation(torch.cat([labels[:, None].float(), draw(32, 400)], dim=1), labels, 2)
    assert share[0] > 0.7
    assert abs(share[1:].mean()) < 0.01
    assert share[0] == separation(labels[:, None] * 100.0 - 3, labels, 2)[0]


def test_retrieval_finds_the_task_whose_classifier_made_the_labels_whatever_the_classes_are_called() -> None:
    bank, _ = a_bank()
    features = draw(40, 16, seed=4)
    values = F.normalize(features, dim=1) @ bank.frozen[bank.owner == 2][0]
    labels = (values > values.median()).long()
    score = retrieve(bank, features, labels, 2, pair=False)
    assert int(score.argmax()) == 2
    assert torch.allclose(score, retrieve(bank, features, 1 - labels, 2, pair=False), atol=1e-6)
    assert score[0] < 0  # it is on pairs
    assert candidates(bank, score, torch.ones(6), 2).tolist()[0] == 2
    banned = torch.ones(6)
    banned[2] = 0
    chosen = candidates(bank, score, banned, 3).tolist()
    assert 2 not in chosen
    assert chosen[-1] == 5


def test_texts_like_a_stored_tasks_are_found_without_labels() -> None:
    bank, _ = a_bank()
    alike = likeness(bank, 5 * F.normalize(draw(5, 16, seed=6))[3].expand(8, -1))
    assert int(alike.argmax()) == 3
    assert torch.allclose(alike[3], torch.tensor(1.0))
    assert alike[-1] == 0


def test_names_find_the_task_that_is_called_alike_in_any_order() -> None:
    bank, _ = a_bank()
    names = 3 * draw(2, 16, seed=33)
    alike = called(bank, names)
    assert int(alike.argmax()) == 3
    assert torch.allclose(alike[3], torch.tensor(1.0))
    assert torch.allclose(called(bank, names.flip(0)), alike)
    assert called(bank, None).tolist() == [0.0] * 6
    assert alike[-1] == 0


def test_candidates_are_compared_on_equally_many_rows_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 40)
    rows = watched(labels, 3, 20)
    assert labels[rows].bincount().tolist() == [8, 5, 7]
    assert torch.equal(rows, rows.sort().values)
    assert watched(labels, 3, 200).tolist() == list(range(95))


def test_the_head_without_directions_is_the_nearest_mean() -> None:
    features = draw(8, 16, seed=5)
    made = NearestMeans(torch.tensor(3.0), torch.tensor(2.0))(features, TWO, 2, features[:0], features[:0, 0])
    centre = features.mean(0)
    length = (features - centre).norm(dim=1).mean()
    new = draw(6, 16, seed=6)
    wanted = logits(class_means(((features - centre) / length).view(1, 2, 4, 16)), ((new - centre) / length)[None])[0]
    found = new @ made[:, :-1].T + made[:, -1]
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    far = [(new - features[c == TWO].mean(0)).square().sum(1) / length**2 for c in (0, 1)]
    assert torch.allclose(found[:, 0] - found[:, 1], far[1] - far[0], atol=1e-4)


def test_the_head_in_a_stretched_metric_is_the_nearest_mean_of_more_features() -> None:
    features, rows, weights = draw(8, 16, seed=5), F.normalize(draw(3, 16, seed=8), dim=1), torch.tensor([1.0, 0.5, 2.0])
    made = NearestMeans(torch.tensor(3.0), torch.tensor(1.0))(features, TWO, 2, rows, weights)
    z = (features - features.mean(0)) / (features - features.mean(0)).norm(dim=1).mean()
    wider = torch.cat([z, z @ (rows * (3 * weights).sqrt()[:, None]).T], dim=1)
    far = [(wider - wider[c == TWO].mean(0)).square().sum(1) / 2 for c in (0, 1)]
    found = features @ made[:, :-1].T + made[:, -1]
    assert torch.allclose(found[:, 0] - found[:, 1], far[1] - far[0], atol=1e-4)


def test_leave_one_out_in_closed_form_is_leave_one_out() -> None:
    features, rows = draw(8, 6, seed=3) + TWO[:, None], F.normalize(draw(2, 6, seed=9), dim=1)
    right, error = left_out(features, TWO, 2, rows, 1.0, 4.0)
    z = features - features.mean(0)
    z = z / z.norm(dim=1).mean()
    wider = torch.cat([z, 2 * z @ rows.T], dim=1)
    y = F.one_hot(TWO, 2).float()
    answers = []
    for i in range(8):
        rest = torch.arange(8) != i
        x, target = wider[rest], y[rest]
        centre, middle = x.mean(0), target.mean(0)
        weights = torch.linalg.solve((x - centre).T @ (x - centre) + torch.eye(8), (x - centre).T @ (target - middle))
        answers.append((wider[i] - centre) @ weights + middle)
    answers = torch.stack(answers)
    assert right == float((answers.argmax(1) == TWO).float().mean())
    assert abs(error - float((answers - y).square().mean())) < 1e-4


def test_nearest_means_without_an_example_are_the_means_of_the_rest() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    z, rows = draw(6, 16, seed=5), F.normalize(draw(2, 16, seed=8), dim=1)
    both = stretched(z, rows, torch.tensor([2.0, 0.5]))
    found = left_out_means(both, labels, 3)
    metric = torch.eye(16) + 2.0 * torch.outer(rows[0], rows[0]) + 0.5 * torch.outer(rows[1], rows[1])
    for i in range(6):
        for c in range(3):
            members = [j for j in range(6) if labels[j] == c and (j != i or c == 2)]
            mean = z[members].mean(0)
            assert torch.allclose(found[i, c], z[i] @ metric @ mean - mean @ metric @ mean / 2, atol=1e-4)


def test_ridge_regression_counts_where_left_out_answers_say_so() -> None:
    labels = torch.arange(2).repeat_interleave(40)
    features = 0.3 * draw(80, 8, seed=5)
    features[:, 0] = 6 * draw(80, seed=4)  # a direction that the means take for a difference
    features[:, 1] = labels * 2.0 - 1
    made = fitted(features, labels, 2, features[:0], features[:0, 0])
    assert float(((features @ made[:, :-1].T + made[:, -1]).argmax(1) == labels).float().mean()) > 0.95
    good, bad = 4 * F.one_hot(labels, 2).float(), draw(80, 2, seed=6)
    assert least_entropy(good, bad, labels)[0] == 0.0
    assert least_entropy(bad, good, labels)[0] >= 0.5
    assert least_entropy(bad, bad, labels)[1] < 1


def test_logits_are_tempered_by_left_out_answers() -> None:
    labels = torch.arange(2).repeat_interleave(30)
    spread = []
    for distance in (0.2, 3.0, 30.0):
        features = draw(60, 16, seed=7) + distance * labels[:, None]
        made = fitted(features, labels, 2, features[:0], features[:0, 0])
        spread.append(float((features @ made[:, :-1].T + made[:, -1]).softmax(1).amax(1).mean()))
    assert spread[0] < 0.9 < spread[1]
    assert spread[2] < 0.999  # sixty right answers do not make it certain


def test_evidence_of_the_default_is_nothing_gained() -> None:
    bank, _ = a_bank()
    chosen = torch.tensor([1, 2, 5])
    told = evidence(bank, chosen, draw(3, 8, 16, seed=2), Retrieval(*torch.zeros(3, 6)), TWO, 2)
    assert told.shape == (3, 10)
    assert told[-1].tolist()[:5] == [0.0] * 5
    assert told[:, 6].tolist() == [0.0, 0.0, 1.0]


def test_the_same_texts_under_several_adapters_are_each_under_one() -> None:
    bank, _ = a_bank()
    encoder, both = tiny_bert(), bank.adapters(torch.tensor([1, 3]))
    together = pooled_each(encoder, tiny_tokens(4), both)
    assert torch.allclose(together[1], pooled_each(encoder, tiny_tokens(4), both[1:])[0], atol=1e-5)


def test_the_same_support_and_seed_give_the_same_adapter() -> None:
    bank, _ = a_bank()
    first, second = (a_generator().generate(tiny_bert(), bank, tiny_tokens(8), TWO, 2, seed=3) for _ in range(2))
    assert torch.equal(first.lora_b, second.lora_b)
    assert torch.equal(first.classifier, second.classifier)
    assert first.lora_b.shape == (2, 2, 16, 2)
    assert first.classifier.shape == (2, 17)
    assert not first.classifier.requires_grad


def test_with_one_segment_the_chain_ends_where_it_ends_with_three() -> None:
    bank, _ = a_bank()
    told = torch.zeros(1, 6, 10)
    told[0, :3, FIRST] = torch.tensor([0.1, 0.12, 0.08])
    ends = []
    for segments, trajectories in ((3, bank.trajectories), (1, bank.trajectories[:, [0, 3]])):
        denoiser = AdapterTokens(AdapterTokensConfig(), Schedule(ScheduleConfig(segments=segments)))
        condition = AdapterCondition(told, trajectories[None], torch.ones(1, 6))
        ends.append(sample(lambda x, t, d=denoiser, c=condition: d(x, t, c), draw(1, *bank.shape), denoiser.schedule))
    assert torch.allclose(*ends, atol=1e-5)
