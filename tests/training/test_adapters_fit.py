"""Fitting, storing and learning adapters on a tiny BERT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.ltdi.adapters.test_bank import a_bank, a_generator
from tests.tiny_bert import tiny_bert, tiny_tokens
from training.adapters.encoded import EncodedTask, Part
from training.adapters.fast import FastBert
from training.adapters.fit import FitConfig, accuracy, equal_length, fit_adapter, task_loss
from training.adapters.learn import Episode, LearnConfig, draw_rows, episode_loss, learn, read_episode
from training.adapters.masking import Masking, dropped, masking_of
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


def test_words_are_what_lies_behind_the_special_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "good", "bad", "<mask>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    masking = masking_of(tmp_path)
    assert masking == Masking(6, 4)
    tokens = replace(tiny_tokens(50), ids=torch.tensor([[0, 4, 5, 2, 1]]).expand(50, -1))
    changed = dropped(tokens, 0.5, torch.Generator().manual_seed(0), masking).ids
    assert torch.equal(changed[:, [0, 3, 4]], tokens.ids[:, [0, 3, 4]])
    assert 0.3 < float((changed[:, 1:3] == 6).float().mean()) < 0.7
    assert torch.equal(dropped(tokens, 0.5, torch.Generator(), Masking(None, 4)).ids, tokens.ids)


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


def test_an_episode_holds_a_support_set_and_queries_of_the_same_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        part, count, classes = draw_rows(a_task("many", 4), draw)
        ways = len(classes)
        assert len(part) == 64
        assert part.labels[:count].bincount().tolist() == [count // ways] * ways
        assert int(part.labels.max()) < ways


def some_episodes() -> list[Episode]:
    bank, encoder = a_bank()[0], tiny_bert(kind=FastBert)
    draw, allowed = torch.Generator().manual_seed(0), torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    adapters = bank.adapters(torch.arange(6))
    with torch.no_grad():
        return [read_episode(encoder, bank, adapters, a_task("made", ways), allowed, draw, torch.eye(4, 16)) for ways in (2, 3, 2)]


def test_an_episode_is_read_under_allowed_candidates_only() -> None:
    for episode in some_episodes():
        assert 1 not in episode.chosen.tolist()
        assert episode.chosen[-1] == 5
        assert episode.support.shape[:2] == (5, len(episode.labels))
        assert len(episode.labels) + len(episode.wanted) == 64


def test_learning_lowers_the_loss_and_stored_tasks_of_the_outer_fold_count_nothing() -> None:
    bank, episodes, folds = a_bank()[0], some_episodes(), torch.tensor([0, 1, 2, 3, 3, -9])
    generator = a_generator()

    def loss() -> float:
        return sum(episode_loss(generator, bank, episode, folds, 3)[0].item() for episode in episodes)

    before = loss()
    learn(generator, bank, episodes, folds, 3, LearnConfig(steps=25, group=3), print)
    assert loss() < before
    for episode in episodes:
        banned = folds[episode.chosen] == 3
        episode.support[banned] = float("nan")
    assert loss() == loss()
