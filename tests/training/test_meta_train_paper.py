import dataclasses
import json

import pytest
import torch

from ltdi.bodies.conv4 import Conv4
from ltdi.denoisers.unet import UNetConfig
from ltdi.errors import InvalidConfig
from ltdi.generator import generate_weights
from ltdi.objective import training_state, trajectory_loss
from ltdi.schedule import Schedule, ScheduleConfig
from training.data.dataset import ClassImages
from training.meta_train_paper import (
    CURVE,
    PaperConfig,
    TrainingDiverged,
    answer_zero,
    fit_codec,
    new_generator,
    segment_losses,
    train_paper,
)
from training.prepare import PrepareConfig, prepare
from training.statistics import statistics_of_episodes

TINY = PaperConfig(
    steps=8,
    tasks=4,
    inner_steps=2,
    denoiser=UNetConfig(channels=(4, 8), embedding=16),
    checkpoint_every=3,
    validate_every=5,
    log_every=1,
)
STATISTICS = (torch.zeros(8), torch.ones(8))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    torch.manual_seed(0)
    body = Conv4(channels=8, image_size=16).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(8, 1, 16, 16, generator=generator)
    images = (patterns + 0.3 * torch.rand(8, 6, 16, 16, generator=generator)) / 1.3
    data = ClassImages((images * 255).to(torch.uint8), [f"c{i}" for i in range(8)])
    few = PrepareConfig(
        tasks=16, ways=3, shots=1, steps=8, views=2, kind="few_shot", hidden=4, lr=0.5, weight_decay=0.0
    )
    many = dataclasses.replace(few, tasks=2, kind="many_shot")
    root = tmp_path_factory.mktemp("stores")
    return {config.kind: prepare(config, body, data, root / config.kind) for config in (few, many)}


def curve(path):
    return [json.loads(line) for line in (path / CURVE).read_text().splitlines()]


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def interrupt(generator):
    raise KeyboardInterrupt


@pytest.mark.parametrize("reptile", [True, False], ids=["reptile", "plain"])
def test_kill_and_resume_equals_no_kill(reptile, stores, tmp_path):
    config = dataclasses.replace(TINY, reptile=reptile)
    whole = train_paper(config, stores["few_shot"], STATISTICS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_paper(config, stores["few_shot"], STATISTICS, tmp_path / "killed", interrupt)
    resumed = train_paper(config, stores["few_shot"], STATISTICS, tmp_path / "killed")
    assert same(whole, resumed)
    for one, other in zip(curve(tmp_path / "whole"), curve(tmp_path / "killed"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("reptile", [True, False], ids=["reptile", "plain"])
def test_the_loss_falls(reptile, stores, tmp_path):
    config = dataclasses.replace(TINY, steps=60, tasks=16, reptile=reptile, outer_lr=0.01, log_every=10)
    train_paper(config, stores["few_shot"], STATISTICS, tmp_path)
    lines = curve(tmp_path)
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]  # at the start x_t answers for itself


def test_the_loss_of_each_segment_is_on_the_curve(stores, tmp_path):
    config = dataclasses.replace(TINY, tasks=64, steps=2)
    train_paper(config, stores["few_shot"], STATISTICS, tmp_path)
    assert {"segment_0", "segment_1", "segment_2", "inner_loss", "moved"} <= curve(tmp_path)[0].keys()


def test_segment_losses_average_to_the_trajectory_loss():
    schedule, generator = Schedule(), torch.Generator().manual_seed(0)
    t = torch.arange(1, 21)
    noise = torch.randn(20, 6, generator=generator)
    state = training_state(schedule, torch.randn(20, 4, 6, generator=generator), t, noise)
    predicted = torch.randn(20, 6, generator=generator)
    losses = segment_losses(schedule, state, predicted)
    counts = torch.bincount(schedule.segment_of_step[1:])
    mean = sum(losses[f"segment_{i}"] * float(counts[i]) for i in range(3)) / 20
    assert mean == pytest.approx(float(trajectory_loss(schedule, state, predicted)), rel=1e-5)


def test_answer_zero_is_the_loss_of_a_denoiser_that_answers_0():
    schedule, generator = Schedule(), torch.Generator().manual_seed(0)
    t = torch.arange(1, 21)
    noise = torch.randn(20, 20000, generator=generator)
    state = training_state(schedule, torch.zeros(20, 4, 20000), t, noise)
    found = float(trajectory_loss(schedule, state, torch.zeros_like(noise)))
    assert found == pytest.approx(answer_zero(schedule), rel=0.01)


@pytest.mark.parametrize("time", ["t", "t-k"])
def test_one_segment_is_vanilla_diffusion_on_the_same_store(time, stores, tmp_path):
    config = dataclasses.replace(
        TINY,
        schedule=ScheduleConfig(segments=1),
        denoiser=dataclasses.replace(TINY.denoiser, time=time),
    )
    generator = train_paper(config, stores["few_shot"], STATISTICS, tmp_path)
    assert generator.schedule.segments == 1
    assert not any("segment_1" in line for line in curve(tmp_path))


def test_a_generated_head_has_the_layout_of_the_store(stores, tmp_path):
    generator = train_paper(TINY, stores["few_shot"], STATISTICS, tmp_path)
    batch = stores["few_shot"].batch([0, 1])
    tasks = generator.describe(statistics_of_episodes(batch.support))
    weights = generate_weights(generator, tasks, torch.randn(2, 1, generator.layout.length))
    assert weights.shape == batch.trajectory[:, 0].shape
    assert generator.logits(weights, batch.support.flatten(1, 2)).shape == (2, 3, 3)


@pytest.mark.parametrize("scale", ["layer", "weight"])
def test_the_codec_standardises_the_waypoints(scale, stores):
    store = stores["few_shot"]
    layout = new_generator(TINY, store, STATISTICS).layout
    codec = fit_codec(store, layout, scale)
    waypoints = store.batch(range(len(store))).trajectory
    standard = codec.encode(waypoints)
    torch.testing.assert_close(standard.flatten(0, 1).mean(0), torch.zeros(layout.length), atol=1e-3, rtol=0)
    parts = layout.split(standard.flatten(0, 1)) if scale == "layer" else [(standard.flatten(0, 1), standard[0])]
    assert all(float(part[0].square().mean()) == pytest.approx(1, rel=0.05) for part in parts)
    torch.testing.assert_close(codec.decode(standard), waypoints, atol=1e-4, rtol=1e-4)


def test_a_run_that_diverges_stops_and_keeps_its_curve(stores, tmp_path):
    config = dataclasses.replace(TINY, steps=200, tasks=16, reptile=False, outer_lr=50.0)
    with pytest.raises(TrainingDiverged, match=r"step \d+.*lower inner_lr.*outer_lr"):
        train_paper(config, stores["few_shot"], STATISTICS, tmp_path)
    assert curve(tmp_path)


def test_another_configuration_does_not_go_on_from_a_checkpoint(stores, tmp_path):
    train_paper(TINY, stores["few_shot"], STATISTICS, tmp_path)
    with pytest.raises(InvalidConfig, match="another outer_lr, seed"):
        train_paper(dataclasses.replace(TINY, outer_lr=0.1, seed=1), stores["few_shot"], STATISTICS, tmp_path)


def test_a_store_that_does_not_go_with_the_recipe_is_refused(stores, tmp_path):
    with pytest.raises(InvalidConfig, match="needs few_shot"):
        train_paper(TINY, stores["many_shot"], STATISTICS, tmp_path)
    config = dataclasses.replace(TINY, schedule=ScheduleConfig(segments=2))
    with pytest.raises(InvalidConfig, match="2 segments, the store's trajectories 3"):
        train_paper(config, stores["few_shot"], STATISTICS, tmp_path)


def test_impossible_settings_are_refused():
    with pytest.raises(InvalidConfig, match="codec_scale 'head' is unknown"):
        PaperConfig(codec_scale="head")
    with pytest.raises(InvalidConfig, match="2 entries; there are 3 segments"):
        PaperConfig(segment_weights=(1.0, 1.0))
