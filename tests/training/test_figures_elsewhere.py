"""Other images, other bodies and other sets: what figures 8 and tables 1, 2, 7 and 8 stand on."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.errors import InvalidConfig
from tests.training.made import photos
from training.cards import WHY_DEFAULTS
from training.data.dataset import ClassImages
from training.data.made import load_made
from training.figures.backbones import LAST, Backbone, trained_backbone
from training.figures.bodies import Bodies
from training.figures.defaults import TITLE, defaults
from training.figures.elsewhere import Elsewhere
from training.figures.page import page
from training.figures.published import ABLATION
from training.figures.record import CONDITION, HOLDS, NOT_HERE, interval
from training.figures.registry import FIGURES
from training.figures.setting import Setting
from training.figures.table1 import ORDER, order_claim
from training.prepare import body_digest

ROOT = Path(__file__).parents[2]


def setting_of(folder: Path, seeds: tuple[int, ...] = (0, 1)) -> Setting:
    return Setting(Path("none"), folder / "figures-quick", seeds, quick=True)


@pytest.mark.parametrize("name", LAST)
def test_a_backbone_is_a_network_of_torchvision_without_its_last_layer(name: str) -> None:
    body = Backbone(name, 3, 48).eval()
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        found = body(images)
    assert found.shape == (2, body.feature_size) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.full((2,), 4.0))
    assert (name == "swin_t") or bool((body.roots(images) > 0).all())


@pytest.mark.parametrize("images", [load_made("train", image_size=28), photos()], ids=["drawings", "photos"])
def test_a_backbone_in_training_moves_and_goes_on_from_what_is_kept(images: ClassImages, tmp_path: Path) -> None:
    body = trained_backbone("resnet18", images, tmp_path, steps=2)
    assert not body.training and not any(parameter.requires_grad for parameter in body.parameters())
    assert float(body.centre.norm()) > 0 and float(body.net.bn1.running_mean.norm()) > 0
    (kept,) = tmp_path.glob("*/body.ckpt.safetensors")
    again = trained_backbone("resnet18", images, tmp_path, steps=2)
    assert all(torch.allclose(a, b) for a, b in zip(body.state_dict().values(), again.state_dict().values(), strict=True))
    assert len(list(tmp_path.glob("*/body.ckpt.safetensors"))) == 1
    trained_backbone("resnet18", images, tmp_path, steps=1)
    assert len(list(tmp_path.glob("*/body.ckpt.safetensors"))) == 2 and kept.exists(), "another config is another body"


def test_swin_is_a_body_like_the_others_where_it_is_asked_for(tmp_path: Path) -> None:
    found = replace(setting_of(tmp_path, (0,)), bodies=("swin_t",)).lab(body="swin_t", size=8)
    assert found.measured("val").support.shape[-1] == 8
    assert len(list((tmp_path / "figures-quick" / "bodies" / "swin_t-made").glob("*/body.ckpt.safetensors"))) == 1
    assert setting_of(tmp_path).networks == ("resnet18", "mobilenet_v2")
    assert replace(setting_of(tmp_path), long=True).networks == ("resnet18", "mobilenet_v2", "swin_t")


def test_features_are_kept_by_body_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    bodies = Bodies(tmp_path / "data", tmp_path / "figures", quick=True)
    found = bodies.features("made", "conv4", "val")
    assert found.ndim == 4 and len(list((tmp_path / "figures" / "features").glob("conv4-made-val-1-*"))) == 1
    shipped, trained = (setting_of(tmp_path, (0,)).lab(body=name) for name in ("conv4", "resnet18"))
    assert shipped.stands_on == {} and trained.stands_on == {"body_digest": body_digest(trained._bodies.body("made", "resnet18"))}
    with pytest.raises(InvalidConfig, match="no body 'vgg' on 'made'"):
        bodies.features("made", "vgg", "val")


def test_each_seed_has_tasks_of_its_own_and_methods_share_them(tmp_path: Path) -> None:
    setting = setting_of(tmp_path)
    one, two = setting.lab(0), setting.lab(1)
    assert one is setting.lab(0)
    assert not torch.equal(one.measured("val").support, two.measured("val").support)
    assert not torch.equal(one.train.path[0], two.train.path[0])
    assert setting.model(two, 3).config.seed == 1
    assert one.train.items.shape[2] == 0 and one.measured("val").items.shape[2] > 0


def test_a_head_is_fitted_to_as_many_images_as_the_laboratory_says(tmp_path: Path) -> None:
    few, all_of_them = (setting_of(tmp_path).lab(most=most).measured("val") for most in (6, 100))
    assert few.items.shape[2] == 6 < all_of_them.items.shape[2]
    assert torch.equal(few.support, all_of_them.support)


def test_tasks_of_another_set_are_in_the_same_frame(tmp_path: Path) -> None:
    lab = setting_of(tmp_path).lab()
    own, other = lab.measured("test"), lab.elsewhere("cifar10")  # of a quick run, the made test classes again
    assert torch.allclose(own.support, other.support)


@pytest.mark.parametrize(
    ("signs", "verdict"), [((-1, 1, 1), HOLDS), ((1, 1, 1), CONDITION), ((-1, 1, -1), NOT_HERE), ((0, 0, 0), NOT_HERE)]
)
def test_the_verdict_on_an_order_is_that_of_its_differences(signs: tuple[int, ...], verdict: str) -> None:
    names = [f"{b} minus {a}" for a, b in itertools.pairwise(ORDER)]
    values = {"differences": {name: interval([float(s), float(s) + 0.01]) for name, s in zip(names, signs, strict=True)}}
    says, found, why = order_claim(values, ABLATION["omniglot", "conv4"])
    assert says == "LLO-VAE below REPTILE, Lv-Di above LLO-VAE, Lt-Di above Lv-Di" and found == verdict and names[0] in why


def test_figure_8_is_figure_7_on_photographs() -> None:
    figure = FIGURES["figure8"]
    assert isinstance(figure, Elsewhere) and figure.of is FIGURES["figure7"]
    assert "mini-ImageNet" in figure.TITLE and figure.on(setting_of(Path("none"))).images == "mini-imagenet"
    assert figure.MOST_SEEDS == 3 and FIGURES["table1-mini"].MOST_SEEDS > 5


def test_defaults_are_those_of_the_bundles_and_every_row_is_a_figure(tmp_path: Path) -> None:
    lines = defaults({})
    schedule = json.loads((ROOT / "bundles" / "omniglot" / "config.json").read_text())["schedule"]
    assert any(line.startswith(f"| `omniglot` | {schedule['steps']} | {schedule['segments']} | {schedule['shape']} | 0.5 |") for line in lines)
    anchors = {part.split(")")[0] for line in lines for part in line.split("(#")[1:]}
    assert anchors and anchors <= set(FIGURES)
    pointer = WHY_DEFAULTS.split("`docs/evidence.md#")[1].split("`")[0]
    assert pointer == TITLE.lower().replace(" ", "-") and f"## {TITLE}\n" in page(tmp_path)


@pytest.mark.parametrize("name", ["omniglot", "omniglot-background", "minilm", "any-embedding", "minilm-lora"])
def test_every_card_points_to_the_defaults(name: str) -> None:
    card = json.loads((ROOT / "bundles" / name / "card.json").read_text(encoding="utf-8"))
    assert card["text"].endswith(WHY_DEFAULTS)
    assert card["text"] in (ROOT / "bundles" / name / "card.md").read_text(encoding="utf-8")
