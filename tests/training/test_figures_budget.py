"""Budgets beyond the page's, bodies that take a GPU, and views of photographs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.errors import InvalidInput
from tests.training.made import photos
from training.augment import random_photo
from training.figures import budget, table7
from training.figures.backbones import LAST, LONG_PHOTOS, PHOTOS, Backbone, config_of
from training.figures.bodies import Bodies
from training.figures.commands import figure
from training.figures.registry import FIGURES, budget_of
from training.figures.setting import Setting
from training.prepare import PrepareConfig, embed_views
from training.runs import commit


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(Path("none"), tmp_path_factory.mktemp("runs") / "figures-quick", (0, 1), quick=True)


def test_the_error_at_the_best_length_is_what_one_factor_for_all_heads_leaves(setting: Setting) -> None:
    lab = setting.lab()
    model = setting.model(lab, 3)
    found = budget._seen(lab, "val", model)
    tasks = lab.measured("val")
    heads, optimum = (lab.codec.encode(one) for one in (model.generate(lab, tasks).heads, tasks.optimum))
    left = optimum.square().mean() - (heads * optimum).mean().square() / heads.square().mean()
    assert found["scaled"] == pytest.approx(float(left), rel=1e-4) and found["scaled"] <= found["error"]
    assert found["length"] == pytest.approx(float(heads.square().mean() / optimum.square().mean()), rel=1e-5)
    assert found["error"] == pytest.approx(float((heads - optimum).square().mean()), rel=1e-4)


def test_each_case_has_a_row_for_each_budget_with_its_differences(setting: Setting) -> None:
    values = budget.measure(setting)
    (case,) = values.values()
    assert [row["batches"] for row in case["rows"]] == list(budget.SMALL[:2])
    for row in case["rows"]:
        pairs = zip(row["3"]["error"]["values"], row["1"]["error"]["values"], strict=True)
        assert row["error less 1"]["3"]["values"] == pytest.approx([a - b for a, b in pairs])
    assert budget_of(budget, setting)["batches"]["Omniglot"] == list(budget.SMALL)
    lines = budget.see(values)
    columns = lines[2].count("|")
    assert all(line.count("|") == columns for line in lines[3 : 4 + len(case["rows"])])


def test_the_budget_in_a_record_is_the_figures_own(setting: Setting) -> None:
    assert budget_of(FIGURES["table4"], setting) is None
    found = budget_of(FIGURES["table8-gpu"], replace(setting, quick=False))
    assert found is not None and found["lab"]["body"] == list(LAST) and found["lab"]["data"] == "mini-imagenet"
    assert found["bodies"] == {"steps": {"resnet18": 9000, "mobilenet_v2": 6000, "swin_t": 4000}, "images": 256, "side": 84, "long": True}
    assert budget_of(FIGURES["figure3"], setting) == setting.budget


def test_bodies_for_a_gpu_are_others_and_are_kept_beside_the_short_ones(tmp_path: Path) -> None:
    assert config_of("resnet18", False, 3) == PHOTOS and config_of("resnet18", True, 3) == LONG_PHOTOS
    assert config_of("mobilenet_v2", False, 1).steps == 3 * config_of("resnet18", False, 1).steps
    assert config_of("swin_t", True, 3).lr < LONG_PHOTOS.lr == config_of("mobilenet_v2", True, 3).lr
    short, long = (Bodies(tmp_path, tmp_path / "figures", quick=True, long=long) for long in (False, True))
    assert short.sides["mini-imagenet"] < long.sides["mini-imagenet"]
    assert short.trained_digest("made", "resnet18") != long.trained_digest("made", "resnet18")
    assert len(list((tmp_path / "figures" / "bodies" / "resnet18-made").glob("*/body.ckpt.safetensors"))) == 2


def test_the_table_of_a_body_is_kept_once_made(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first = table7.measure(setting)
    monkeypatch.setattr(table7, "rows_on", lambda *_, **__: pytest.fail("made again"))
    assert table7.measure(setting) == first
    (path,) = (setting.kept / "tables").glob("resnet18-*.json")
    assert json.loads(path.read_text()) == first["bodies"]["resnet18"]
    with pytest.raises(pytest.fail.Exception, match="made again"):
        table7.measure(replace(setting, part="val"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no CUDA device"):
        figure(["table7-gpu", "--quick", "--device", "cuda", "--runs", str(tmp_path), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_bodies_are_trained_and_their_features_made(tmp_path: Path) -> None:
    assert figure(["table7-gpu", "--quick", "--device", "cuda", "--runs", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "table7-gpu.json").read_text())["values"]["training"]["long"]


def test_photographs_have_views_and_the_first_is_the_photograph() -> None:
    data, body = photos(), Backbone("resnet18", 3, 32).eval()
    bank = embed_views(body, data, PrepareConfig(views=3))
    assert bank.shape == (4, 6, 3, body.feature_size)
    with torch.no_grad():
        own = body(data.pixels.float() / 255).unflatten(0, (4, 6))
    torch.testing.assert_close(bank[:, :, 0], own)
    assert not torch.allclose(bank[:, :, 1], own) and not torch.allclose(bank[:, :, 1], bank[:, :, 2])
    torch.testing.assert_close(bank, embed_views(body, data, PrepareConfig(views=3)))


def test_a_changed_photograph_is_of_the_same_size_in_the_same_range() -> None:
    images = photos().pixels.float() / 255
    found = random_photo(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    assert torch.equal(found, random_photo(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, random_photo(images, torch.Generator().manual_seed(1)))


def test_outside_of_a_checkout_the_commit_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = commit()
    monkeypatch.setenv("GIT_COMMIT", "abc")
    assert commit() == inside
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "abc"
    monkeypatch.delenv("GIT_COMMIT")
    assert commit() == "unknown"
