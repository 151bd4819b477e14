"""Episodes to look at are those that are measured; another bundle on the same features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltdi import Bundle
from tests.training.test_image_pools import generator_of
from training.data.dataset import ClassImages
from training.episodes import Protocol, draw
from training.evaluate import generated
from training.fit import read_history
from training.look import draw_picture, look, report
from training.other_bundle import rows_of, table, write_history

PROTOCOL = Protocol(4, 2, queries=6, episodes=50, seed=3)


@pytest.fixture(scope="module")
def bank() -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(12, 1, 16, generator=chance) + 1.2 * torch.randn(12, 60, 16, generator=chance)
    return torch.stack([features, features, torch.zeros_like(features)], dim=2)


def test_what_is_looked_at_is_what_is_measured(bank: torch.Tensor, tmp_path: Path) -> None:
    generator = generator_of(bank)
    torch.nn.init.normal_(generator.denoiser.answer.weight, std=0.05)
    seen = look(generator, bank, PROTOCOL, 3)
    episodes = next(draw(bank, PROTOCOL))
    flat = bank[:, :, 0].flatten(0, 1)
    answers = generated(generator)(episodes).argmax(-1)
    for place, one in enumerate(seen):
        assert torch.equal(flat[one.support], episodes.support[place])
        assert torch.equal(flat[one.queries], episodes.queries[place])
        assert torch.equal(one.generated, answers[place])
        assert torch.equal(one.queries // 60, one.classes[one.target])
        counts = one.counts()
        assert counts["disagree"] == sum(counts[name] for name in ("generated right", "baseline right", "neither"))
    assert sum(one.counts()["disagree"] for one in seen) > 0
    names = [f"group/class {n}" for n in range(12)]
    images = ClassImages(torch.randint(256, (12, 60, 3, 8, 8), dtype=torch.uint8), names)
    pytest.importorskip("matplotlib")
    draw_picture(seen, images, tmp_path / "new" / "episodes.png")
    assert (tmp_path / "new" / "episodes.png").read_bytes()[:4] == b"\x89PNG"
    assert report(seen, names).count("\n") == 4 and "class" in report(seen, names)


def test_another_bundle_is_measured_with_and_without_a_pool(bank: torch.Tensor, toy_features: Bundle) -> None:
    rows = rows_of(toy_features, bank, bank, episodes=6, chosen_on=20)
    assert [row["pool"] is None for row in rows] == [True, False, False, False] * 2
    assert all(20 < row["accuracy"]["generated"]["mean"] <= 100 for row in rows)
    assert rows[0]["difference"]["mean"] == pytest.approx(
        rows[0]["accuracy"]["generated"]["mean"] - rows[0]["accuracy"]["closed form"]["mean"]
    )
    assert table(rows).count("\n") == 9 and "pool of 100, unbalanced, 25% of other classes" in table(rows)


def test_training_features_are_a_history_that_fit_reads(bank: torch.Tensor, tmp_path: Path) -> None:
    write_history([bank, bank + 1], tmp_path / "tasks.jsonl")
    history = read_history(tmp_path / "tasks.jsonl")
    assert len(history.labels) == 12 + 3 and tuple(history.inputs.shape) == (12 * 60 + 3 * 20, 16)
    place = history.labels.index("0-7")
    rows = [row for row, owner in enumerate(history.class_index) if owner == place]
    torch.testing.assert_close(history.inputs[rows], bank[7, :, 0], atol=1e-4, rtol=0)
