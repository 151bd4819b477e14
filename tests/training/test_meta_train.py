"""The default recipe's training: tasks cut from batches, both losses, and resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi import baselines
from ltdi.denoisers.class_tokens import ClassTokensConfig
from training.body import BodyConfig, class_mean_loss, train_body
from training.checkpoint import load_checkpoint
from training.data.dataset import ClassImages
from training.data.made import load_made
from training.meta_train import (
    CHECKPOINT,
    MetaTrainConfig,
    cut_tasks,
    generate_batch,
    initial_generator,
    meta_train,
)
from training.statistics import statistics_of_episodes
from training.virtual import closer, mix_classes, softer, virtual_classes

CONFIG = MetaTrainConfig(
    steps=6, classes=12, drawings=4, ways=(4, 6), denoiser=ClassTokensConfig(width=16, heads=2), checkpoint_every=3
)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(20, 8, 16, generator=torch.Generator().manual_seed(0)).relu()


@pytest.fixture(scope="module")
def bank(features: torch.Tensor) -> torch.Tensor:
    """Features without views, `[20, 8, 1, 16]`."""
    return features.unsqueeze(2)


def test_tasks_use_every_class_once_and_keep_support_and_queries_apart() -> None:
    coded = torch.arange(12 * 4).view(12, 4, 1, 1).float()
    split = cut_tasks(coded, ways=4, shots=1, generator=torch.Generator().manual_seed(0))
    seen = torch.cat([split.support.flatten(), split.queries.flatten()])
    assert sorted(seen.int().tolist()) == list(range(48))
    class_of_query = split.queries[..., 0].int() // 4
    class_of_row = split.support[:, :, 0, 0].int() // 4
    assert torch.equal(class_of_query, class_of_row[:, split.target])


def test_a_task_keeps_the_views_of_its_examples_and_asks_about_images_as_they_are() -> None:
    coded = torch.arange(12 * 4).view(12, 4, 1, 1).float() + torch.tensor([0, 100, 200]).view(3, 1)
    split = cut_tasks(coded, ways=4, shots=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(split.views[..., 0], split.support.unsqueeze(3)[..., 0] + torch.tensor([100, 200]))
    assert split.queries.max() < 48 and split.support.max() < 48


def test_an_untrained_generator_is_the_baseline_on_estimated_means(features: torch.Tensor, bank: torch.Tensor) -> None:
    generator = initial_generator(CONFIG, bank)
    support = features[:5, :1].unsqueeze(0)
    statistics = statistics_of_episodes(support)
    estimated = statistics.means + generator.from_features(statistics)
    noise = torch.randn(1, 1, *generator.noise_shape(5))
    heads = generate_batch(generator, support, noise)
    torch.testing.assert_close(heads, baselines.nearest_mean(estimated), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(heads, baselines.class_means(support), atol=1e-2)


def test_training_lowers_the_task_loss_on_its_own_classes(bank: torch.Tensor, tmp_path) -> None:
    config = replace(CONFIG, steps=60, lr=3e-3, ways=(6,))
    generator = meta_train(config, bank, tmp_path)
    chance = torch.Generator().manual_seed(9)
    split = cut_tasks(bank, 6, 1, chance)
    noise = torch.randn(len(split.support), 1, *generator.noise_shape(6), generator=chance)
    target = split.target.repeat(len(split.support))

    def loss(heads: torch.Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(baselines.logits(heads, split.queries).flatten(0, 1), target))

    with torch.no_grad():
        assert loss(generate_batch(generator, split.support, noise)) < loss(baselines.class_means(split.support)) - 0.1


def test_kill_and_resume_equals_no_kill(bank: torch.Tensor, tmp_path) -> None:
    def stop(*_: object) -> dict[str, float]:
        raise Killed

    meta_train(CONFIG, bank, tmp_path / "whole")
    with pytest.raises(Killed):
        meta_train(replace(CONFIG, validate_every=4), bank, tmp_path / "killed", validate=stop)
    meta_train(CONFIG, bank, tmp_path / "killed")
    whole, killed = (load_checkpoint(tmp_path / name / CHECKPOINT)[0] for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_body_resumes_to_the_same_numbers(tmp_path) -> None:
    data = load_made("train", classes=12, drawings=6)
    config = BodyConfig(channels=4, steps=4, classes=8, drawings=3, checkpoint_every=2)
    whole = train_body(config, data, tmp_path / "whole")
    folder = tmp_path / "killed"
    train_body(replace(config, checkpoint_every=2), data, folder)
    first = (folder / "body.ckpt.safetensors").read_bytes()
    again = train_body(config, data, folder)
    assert (folder / "body.ckpt.safetensors").read_bytes() == first
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_class_mean_loss_is_that_of_prototypical_networks_on_a_batch_of_two_drawings() -> None:
    features = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    distances = torch.cdist(features[0], features[1]).square()
    there, back = (torch.nn.functional.cross_entropy(-d, target) for d in (distances, distances.T))
    assert torch.allclose(class_mean_loss(features), there + back, atol=1e-5)


def test_mixed_classes_take_at_most_half_of_their_channels_from_another_one_and_keep_their_length() -> None:
    chance = torch.Generator().manual_seed(0)
    batch = torch.ones(200, 2, 3, 400) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    mixed = mix_classes(batch, 5 * batch, 0.8, chance)
    taken = mixed.abs() / mixed.abs().amin(-1, keepdim=True) > 1.5
    shares = taken.float().mean(-1)
    assert torch.equal(shares[:, 0], shares[:, 1])  # every drawing of a class alike
    assert 0.15 < float((shares[:, 0, 0] == 0).float().mean()) < 0.25 and shares.max() < 0.6
    assert torch.allclose(mixed[:, :, :2].norm(dim=-1), batch[:, :, :2].norm(dim=-1))


def test_further_classes_are_turned_have_their_channels_exchanged_or_are_softer_or_closer() -> None:
    data = ClassImages(torch.arange(2 * 3 * 4).reshape(1, 2, 3, 2, 2).to(torch.uint8), ["one"])
    found = dict(virtual_classes(data))
    assert list(found) == ["turn90", "turn180", "turn270", "order120", "order201", "order210", "soft", "close"]
    assert torch.equal(found["turn180"].images, data.images.flip(3, 4))
    assert torch.equal(found["order210"].images, data.images.flip(2))


def test_softer_images_lose_what_is_fine_and_closer_ones_show_the_middle() -> None:
    fine = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    fine[..., ::2] = 200
    assert torch.equal(softer(fine, 0.5), torch.full_like(fine, 100))
    framed = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    framed[..., 2:6, 2:6] = 255
    assert torch.equal(closer(framed, 0.5), torch.full_like(framed, 255))


def test_virtual_classes_take_part_and_estimators_learn_on_where_asked(bank: torch.Tensor, tmp_path) -> None:
    config = replace(CONFIG, estimate_lr=1.0, mixed=0.5)
    plain = meta_train(config, bank, tmp_path / "plain")
    virtual = meta_train(config, bank, tmp_path / "virtual", virtual=[-bank])
    fitted = initial_generator(config, bank)
    assert not torch.equal(plain.from_features.weight, fitted.from_features.weight)
    assert not torch.equal(plain.denoiser.read_task.weight, virtual.denoiser.read_task.weight)
    left = meta_train(replace(config, estimate_lr=0.0), bank, tmp_path / "left")
    assert torch.equal(left.from_features.weight, fitted.from_features.weight)
