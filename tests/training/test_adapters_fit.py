"""Fitting, storing and learning adapters on a tiny BERT."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from tests.ltdi.test_adapter_bank import a_bank, a_generator
from tests.tiny_bert import tiny_bert, tiny_tokens
from training.adapters.encoded import EncodedTask, Part
from training.adapters.fast import FastBert
from training.adapters.fit import FitConfig, accuracy, dropped, equal_length, fit_adapter, task_loss
from training.adapters.heads import left_out_errors
from training.adapters.learn import Field, LearnConfig, draw_episode, episode_loss, learn
from training.adapters.multitask import MultiTaskConfig, train_multitask
from training.adapters.start import similarity_loss
from training.adapters.store import final, prepare, read_store

START = torch.zeros(2, 2, 16, 2)


def a_task(name: str = "made", ways: int = 2, source: str = "sst2") -> EncodedTask:
    """Texts whose class is a word that stands in each of them."""

    def part(rows: int, seed: int) -> Part:
        tokens, labels = tiny_tokens(rows, seed=seed), torch.arange(rows) % ways
        tokens.ids[:, 1:5] = (1010 + labels)[:, None]
        return Part(tokens, labels)

    return EncodedTask(name, source, tuple("abcd"[:ways]), False, part(240, 1), part(40, 2), part(40, 3))


def test_bfloat16_products_change_features_and_gradients_little() -> None:
    tokens, found = tiny_tokens(4), []
    for kind in (FastBert, type(tiny_bert())):
        lora_b = START.clone().requires_grad_(True)
        features = tiny_bert(kind=kind).hidden(tokens, lora_b[None])[:, 0]
        features[:, :5].sum().backward()
        found.append((features.detach(), lora_b.grad))
    assert (found[0][0] - found[1][0]).norm() < 0.03 * found[1][0].norm()
    assert torch.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0) > 0.99


def test_a_fit_lowers_the_loss_and_keeps_its_ends() -> None:
    encoder, task = tiny_bert(), a_task()
    fitted = fit_adapter(encoder, task, START, FitConfig(steps=60, rate=1e-2, head_rate=1e-2, token_dropout=0.0))
    assert fitted.lora_b.shape == (4, 2, 2, 16, 2)
    assert torch.equal(fitted.lora_b[-1], START)
    first, last = (float(task_loss(encoder, fitted.lora_b[i], fitted.classifier[i], task.held)) for i in (-1, 0))
    assert last < first
    assert accuracy(encoder, fitted.lora_b[0], fitted.classifier[0], task.held) > 0.9


def test_waypoints_lie_at_equal_lengths_of_the_path() -> None:
    path = [torch.tensor([float(x)]) for x in (0, 6, 7, 8, 9, 10, 11, 12)]
    assert equal_length(path, 4) == [7, 3, 1, 0] or equal_length(path, 4) == [7, 3, 0, 0]
    assert equal_length([torch.tensor([float(x)]) for x in range(10)], 4) == [9, 6, 3, 0]


def test_token_dropout_leaves_special_tokens_and_padding_alone() -> None:
    tokens = tiny_tokens(50)
    tokens.ids[:, 0] = 101
    changed = dropped(tokens, 0.5, torch.Generator().manual_seed(0)).ids
    assert (changed[:, 0] == 101).all()
    assert (changed[tokens.mask == 0] == 0).all()
    assert 0.4 < float((changed == 103)[:, 1:6].float().mean()) < 0.6


def test_the_store_is_resumed_and_made_anew_with_other_settings(tmp_path: Path) -> None:
    encoder, tasks, lines = tiny_bert(), [a_task("one"), a_task("two", 3)], []
    prepare(encoder, tasks[:1], START, FitConfig(steps=2), tmp_path, lines.append)
    prepare(encoder, tasks, START, FitConfig(steps=2), tmp_path, lines.append)
    assert [line.split()[1] for line in lines] == ["one:", "two:"]
    prepare(encoder, tasks, START, FitConfig(steps=3), tmp_path, lines.append)
    assert len(lines) == 4
    stored = read_store(tmp_path, ["two", "one"])
    assert stored[0].classifier.shape == (4, 3, 17)
    assert final(stored).shape == (2, 2, 2, 16, 2)


def test_one_adapter_learns_two_tasks() -> None:
    encoder, tasks = tiny_bert(), [a_task("one"), a_task("two", 3)]
    heads = [torch.zeros(task.ways, 17) for task in tasks]
    lora_b, heads = train_multitask(encoder, tasks, START, heads, MultiTaskConfig(steps=60, rate=1e-2, head_rate=5e-2))
    for task, head in zip(tasks, heads, strict=True):
        assert accuracy(encoder, lora_b, head, task.held) > 0.8


def test_similarities_do_not_change_under_rotation() -> None:
    features = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert similarity_loss(features @ rotation, features) < 1e-10
    assert similarity_loss(features.flip(0), features) > 0.01


def test_leave_one_out_in_closed_form_is_leave_one_out() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(8)
    features = torch.randn(16, 6, generator=draw) + labels[:, None]
    right, error = left_out_errors(features, labels, 2)
    z = features - features.mean(0)
    z = z / z.norm(dim=1).mean()
    y = F.one_hot(labels, 2).float()
    answers = []
    for i in range(16):
        rest = torch.arange(16) != i
        x, target = z[rest], y[rest]
        centre, middle = x.mean(0), target.mean(0)
        gram = (x - centre).T @ (x - centre) + torch.eye(6)
        weights = torch.linalg.solve(gram, (x - centre).T @ (target - middle))
        answers.append((z[i] - centre) @ weights + middle)
    answers = torch.stack(answers)
    assert right == float((answers.argmax(1) == labels).float().mean())
    assert abs(error - float((answers - y).square().mean())) < 1e-4


def test_an_episode_holds_a_support_set_and_queries_of_the_same_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        episode = draw_episode(a_task("many", 4), draw, 0.5)
        own = episode.labels[: episode.support]
        assert len(episode.labels) == 64
        assert own.bincount().tolist() == [episode.support // episode.ways] * episode.ways
        assert episode.whole == (episode.ways == 4)


def test_learning_moves_the_generator_and_keeps_the_encoder() -> None:
    bank, _ = a_bank()
    encoder, generator = tiny_bert(kind=FastBert), a_generator()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    field = Field([a_task("one"), a_task("two", 3)], bank, torch.ones(5), torch.zeros(2, 4, *bank.shape))
    learn(generator, encoder, [field], LearnConfig(episodes=8, group=2))
    moved = [name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])]
    assert {"denoiser.log_sharpness", "denoiser.nothing", "head.log_lambda", "head.log_gamma", "shift"} <= set(moved)


def test_the_task_loss_reaches_the_chain_through_the_encoder() -> None:
    bank, _ = a_bank()
    encoder, generator = tiny_bert(), a_generator()
    field = Field([a_task("one")], bank, torch.ones(5), torch.zeros(1, 4, *bank.shape))
    episode = draw_episode(field.tasks[0], torch.Generator().manual_seed(0), 0.0)
    noise = torch.randn(1, *bank.shape, generator=torch.Generator().manual_seed(1))
    loss, _, _ = episode_loss(generator, encoder, field, episode, noise)
    loss.backward()
    assert generator.denoiser.gain.grad[1].abs().sum() > 0
    assert generator.denoiser.relate[2].weight.grad.abs().sum() > 0
