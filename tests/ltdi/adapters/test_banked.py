"""A trained generator inside a bundle makes the adapters that it makes by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.adapters import BaseModel
from ltdi.adapters.bank import make_bank
from ltdi.adapters.banked import banked_bundle
from ltdi.adapters.generator import AdapterGenerator
from ltdi.adapters.items import spoken
from ltdi.adapters.maker import AdapterConfig, AdapterMaker
from ltdi.bodies.adapted import AdaptedBert, load_weights, mean_pooled, tokenize
from ltdi.denoisers.adapter_tokens import AdapterTokens, AdapterTokensConfig
from ltdi.schedule import Schedule
from tests.ltdi.adapters.made import LABELS, TEXTS, write_base

DICE = torch.Generator().manual_seed(3)


def draw(*shape: int) -> torch.Tensor:
    return 0.2 * torch.randn(*shape, generator=DICE)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_bundle_s_adapters_are_the_generator_s(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: False)  # looks to the last digit
    folder = write_base(tmp_path / "toy" / "base", kind)
    lora_a, start = draw(2, 2, 4, 32), draw(2, 2, 32, 4)
    heads = [[draw(2 + i % 2, 33) for i in range(9)] for _ in range(2)]
    bank = make_bank(start, start + draw(9, 4, 2, 2, 32, 4), start + draw(2, 2, 32, 4), *heads, [False] * 9, torch.nn.functional.normalize(draw(9, 32), dim=1), [draw(2, 32) for _ in range(9)], 7)
    generator = AdapterGenerator(AdapterTokens(AdapterTokensConfig(), Schedule()))
    torch.nn.init.normal_(generator.denoiser.relate[2].weight, std=0.3, generator=DICE)
    generator.denoiser.log_sharpness.data.fill_(0.0)
    maker = AdapterMaker(AdapterConfig("base", "", 16, 2.0, tuple("abcdefghi")), generator, bank, lora_a)
    banked_bundle(maker, "toy", "made/tiny", BaseModel(str(folder), 16)).save(tmp_path / "toy")
    bundle = ltdi.load_bundle(tmp_path / "toy", device="cpu")
    made = bundle.generate(TEXTS, LABELS, seed=3, fallback="none")

    task = bundle.support(TEXTS, LABELS).canonical
    encoder = AdaptedBert(*load_weights(folder), lora_a, 2.0)
    tokens = tokenize(folder, [TEXTS[i] for i in task.example_order], most=16)
    with torch.no_grad():
        said = tokenize(folder, [spoken(made.labels[i]) for i in task.class_order], most=16)
        names = mean_pooled(encoder.hidden(said), said.mask)
    alone = generator.generate(encoder, bank, tokens, task.class_index, 3, seed=3, names=names)
    own = torch.stack([made.lora[module.path][1] for module in bundle.config.target.modules]).view(2, 2, 32, 4)
    assert torch.allclose(own, alone.lora_b, atol=1e-5) and not torch.allclose(own, start, atol=1e-2)
    assert 0 <= made.support_accuracy <= 1
    with torch.no_grad():
        features = encoder.pooler(encoder.hidden(tokens, own[None])[:, 0])
    read = bundle.body.features([TEXTS[i] for i in task.example_order], made.lora, 2.0, bundle.parts.saved)
    assert torch.allclose(read, features, atol=1e-5), "the model reads what the stored adapters were fitted on"
    assert alone.weights.max() < 0.99, "more than one stored task counts"
