import dataclasses
import json

import pytest
import torch

from ltdi import baselines
from ltdi.bodies.conv4 import Conv4
from ltdi.codec import Layout
from ltdi.errors import DamagedFile, DataMissing, InvalidConfig
from training.data.dataset import ClassImages
from training.prepare import Frame, PrepareConfig, prepare, select_waypoints, shared_start
from training.trajectories import Trajectories, read_index

MANY = PrepareConfig(tasks=10, ways=3, shots=2, steps=6, views=2, shard_tasks=4)
FEW = dataclasses.replace(MANY, kind="few_shot", hidden=4, lr=0.5, sam_radius=0.05, weight_decay=0.0)


@pytest.fixture(scope="module")
def body():
    torch.manual_seed(0)
    return Conv4(channels=8, image_size=16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(8, 1, 16, 16, generator=generator)
    images = (patterns + 0.1 * torch.rand(8, 6, 16, 16, generator=generator)) / 1.1
    return ClassImages((images * 255).to(torch.uint8), [f"c{i}" for i in range(8)])


def files(path):
    return {file.name: file.read_bytes() for file in path.glob("*.safetensors")}


@pytest.mark.parametrize("config", [MANY, FEW], ids=["many_shot", "few_shot"])
def test_the_fit_gets_better_along_the_path(config, body, data, tmp_path):
    store = prepare(dataclasses.replace(config, steps=100, views=1, noise=0.0, hidden=16), body, data, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "prepare.log.jsonl").read_text().splitlines()]
    assert all(line["accuracy"] >= line["start_accuracy"] for line in lines)
    assert lines[0]["accuracy"] > 0.8
    assert len(store) == 10
    assert store.complete


def test_a_many_shot_trajectory_starts_at_the_class_means_of_its_support(body, data, tmp_path):
    batch = prepare(MANY, body, data, tmp_path).batch(range(10))
    assert batch.trajectory.shape == (10, 4, 3, 9)
    assert batch.support.shape == (10, 3, 2, 8)
    torch.testing.assert_close(batch.base, baselines.class_means(batch.support))
    torch.testing.assert_close(batch.trajectory[:, -1], batch.base, atol=1e-4, rtol=1e-4)


def test_few_shot_trajectories_share_their_start_up_to_a_little_noise(body, data, tmp_path):
    batch = prepare(dataclasses.replace(FEW, steps=60), body, data, tmp_path).batch(range(10))
    layout = Layout((8, 4, 3))
    assert batch.trajectory.shape == (10, 4, layout.length)
    assert batch.base is None
    starts = [layout.split(batch.trajectory[:, i])[1][0] for i in (-1, 0)]
    _, deviation = shared_start(FEW, layout)
    expected = FEW.initial_noise * layout.split(deviation)[1][0].mean()
    assert starts[0].std(0).mean() == pytest.approx(float(expected), rel=0.2)
    assert starts[1].std(0).mean() > 2 * starts[0].std(0).mean()


@pytest.mark.parametrize("config", [MANY, FEW], ids=["many_shot", "few_shot"])
def test_kill_and_resume_equals_no_kill(config, body, data, tmp_path):
    prepare(config, body, data, tmp_path / "whole")
    prepare(dataclasses.replace(config, tasks=6), body, data, tmp_path / "killed")
    # as a kill within the second shard leaves it: the index names the first, the other file is cut short
    index = read_index(tmp_path / "killed")
    index["shards"] = index["shards"][:1]
    (tmp_path / "killed" / "index.json").write_text(json.dumps(index))
    cut = tmp_path / "killed" / "shard-00001.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    prepare(config, body, data, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert (tmp_path / "killed" / "index.json").read_bytes() == (tmp_path / "whole" / "index.json").read_bytes()


def test_whole_shards_are_kept_and_damaged_ones_made_again(body, data, tmp_path):
    prepare(MANY, body, data, tmp_path)
    before, first = files(tmp_path), tmp_path / "shard-00000.safetensors"
    made = first.stat().st_mtime_ns
    last = tmp_path / "shard-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-4] + b"\0\0\0\1")
    prepare(MANY, body, data, tmp_path)
    assert files(tmp_path) == before
    assert first.stat().st_mtime_ns == made


def test_a_longer_store_begins_with_the_shorter_one(body, data, tmp_path):
    short = prepare(dataclasses.replace(MANY, tasks=5), body, data, tmp_path).batch(range(5))
    longer = prepare(MANY, body, data, tmp_path)
    assert len(longer) == 10
    torch.testing.assert_close(longer.batch(range(5)).trajectory, short.trajectory)


def test_a_growing_store_can_be_read(body, data, tmp_path):
    prepare(dataclasses.replace(MANY, tasks=4), body, data, tmp_path)
    store = Trajectories(tmp_path)
    assert store.refresh() == 0
    prepare(MANY, body, data, tmp_path)
    assert store.refresh() == 6
    assert store.batch([9, 0]).classes.shape == (2, 3)


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.1}, {"waypoint_rule": "steps"}])
def test_a_store_of_other_settings_is_refused_by_name(change, body, data, tmp_path):
    prepare(dataclasses.replace(MANY, tasks=4), body, data, tmp_path)
    with pytest.raises(InvalidConfig, match=f"{next(iter(change))} .*, now .*give another folder"):
        prepare(dataclasses.replace(MANY, tasks=4, **change), body, data, tmp_path)


def test_a_store_of_other_data_or_another_body_is_refused(body, data, tmp_path):
    prepare(dataclasses.replace(MANY, tasks=4), body, data, tmp_path)
    with pytest.raises(InvalidConfig, match="data "):
        prepare(MANY, body, ClassImages(255 - data.images, data.names), tmp_path)
    with pytest.raises(InvalidConfig, match="body "):
        prepare(MANY, Conv4(channels=8, image_size=16).eval(), data, tmp_path)


def test_a_damaged_shard_is_not_read(body, data, tmp_path):
    prepare(MANY, body, data, tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DamagedFile, match=r"shard-00001.*digest.*prepare again"):
        Trajectories(tmp_path)


def test_a_folder_without_a_store_says_how_to_make_one(tmp_path):
    with pytest.raises(DataMissing, match="ltdi prepare"):
        Trajectories(tmp_path)


def test_embedded_views_are_kept_for_the_same_body_data_and_views_only(body, data, tmp_path):
    cache = tmp_path / "views.safetensors"
    with_cache = prepare(MANY, body, data, tmp_path / "a", cache)
    made = cache.stat().st_mtime_ns
    prepare(MANY, body, data, tmp_path / "b", cache)
    assert cache.stat().st_mtime_ns == made
    prepare(dataclasses.replace(MANY, views=3), body, data, tmp_path / "c", cache)
    assert cache.stat().st_mtime_ns != made
    plain = prepare(MANY, body, data, tmp_path / "d")
    assert torch.equal(with_cache.batch(range(10)).trajectory, plain.batch(range(10)).trajectory)


def test_the_path_rule_shares_out_the_way_and_the_steps_rule_the_steps():
    places = torch.tensor([0.0, 5.0, 8.0, 9.0, 9.5, 10.0, 10.0])
    path = places.reshape(-1, 1, 1)
    assert select_waypoints(path, 2, "path").flatten().tolist() == [10.0, 5.0, 0.0]
    assert select_waypoints(path, 2, "steps").flatten().tolist() == [10.0, 9.0, 0.0]
    still = select_waypoints(torch.zeros(5, 2, 3), 4, "path")
    assert still.shape == (2, 5, 3)


def test_a_head_answers_the_same_in_and_out_of_the_frame():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(20, 5, generator=generator) * 4 + 3
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    frame = Frame.of(features)
    inside = frame.features(features)
    assert float(inside.square().sum(-1).mean()) == pytest.approx(1, rel=1e-4)
    outer_weight, outer_bias = frame.leave(weight, bias)
    torch.testing.assert_close(features @ outer_weight.T + outer_bias, inside @ weight.T + bias, atol=1e-4, rtol=1e-4)
    for found, given in zip(frame.enter(outer_weight, outer_bias), (weight, bias), strict=True):
        torch.testing.assert_close(found, given, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "some"}, "kind 'some' is unknown"),
        ({"waypoint_rule": "time"}, "waypoint_rule 'time' is unknown"),
        ({"waypoints": 7}, r"1\.\.steps \(6\)"),
        ({"ways": 1}, "at least 2 classes"),
        ({"views": 0}, "views is 0"),
    ],
)
def test_an_impossible_setting_is_refused(change, message):
    with pytest.raises(InvalidConfig, match=message):
        dataclasses.replace(MANY, **change)


def test_a_task_larger_than_the_data_is_refused(body, data, tmp_path):
    with pytest.raises(InvalidConfig, match="the data has 8 classes"):
        prepare(dataclasses.replace(MANY, ways=9), body, data, tmp_path)
    with pytest.raises(InvalidConfig, match="a class has 6 images"):
        prepare(dataclasses.replace(MANY, shots=7), body, data, tmp_path)
