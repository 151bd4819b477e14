"""Training of a body for photographs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training import classify
from training.augment import crop, crop_maps
from training.classify import ClassifyConfig, train_classifier
from training.data.dataset import ClassImages

CONFIG = ClassifyConfig(
    widths=(8, 8, 8, 16), image_size=16, crop_size=14, steps=6, batch=16, checkpoint_every=6
)


def photos() -> ClassImages:
    chance = torch.Generator().manual_seed(0)
    return ClassImages(
        torch.randint(256, (8, 6, 3, 16, 16), generator=chance, dtype=torch.uint8), [f"c{n}" for n in range(8)]
    )


def test_a_killed_run_ends_with_the_same_body(tmp_path, monkeypatch) -> None:
    whole = train_classifier(CONFIG, photos(), tmp_path / "whole")
    save = classify.save_checkpoint

    def killed(*args: object) -> None:
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(classify, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(replace(CONFIG, checkpoint_every=4), photos(), tmp_path / "killed")
    monkeypatch.undo()
    again = train_classifier(CONFIG, photos(), tmp_path / "killed")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert whole.centre.abs().sum() > 0


def test_a_body_by_class_means_begins_with_another(tmp_path) -> None:
    first = train_classifier(CONFIG, photos(), tmp_path / "first").state_dict()
    config = replace(CONFIG, by_class_means=True, steps=3, lr=0.0)
    second = train_classifier(config, photos(), tmp_path / "second", first)
    assert torch.equal(second.blocks[0][0].weight, first["blocks.0.0.weight"])
    moved = train_classifier(replace(config, lr=1e-2), photos(), tmp_path / "third", first)
    assert not torch.equal(moved.blocks[0][0].weight, first["blocks.0.0.weight"])


def test_crops_lie_inside_the_image_and_half_are_mirrored() -> None:
    maps = crop_maps(400, torch.Generator().manual_seed(0))
    reach = maps[:, :, :2].abs().sum(2) + maps[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-6 and 150 < int((maps[:, 0, 0] < 0).sum()) < 250
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    mirrored = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    assert torch.allclose(crop(ramp, mirrored, 8), ramp.flip(3), atol=1e-5)
