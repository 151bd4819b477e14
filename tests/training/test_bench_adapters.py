"""The clock of adapters measures adapters, and gradient steps that do learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltdi.adapters import BaseModel
from tests.ltdi.adapters.made import make_adapter_bundle, write_base
from training import bench_adapters
from training.bench_adapters import gradient_steps, made_texts

pytest.importorskip("peft", reason="PEFT is not installed")


def test_the_bench_says_times_and_their_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_adapters, "WAYS", (2,))
    monkeypatch.setattr(bench_adapters, "SHOTS", 4)
    bundle = make_adapter_bundle(BaseModel(str(write_base(tmp_path / "base")), 64), "base")
    said = bench_adapters.bench_adapters(bundle, rounds=2)["one_adapter"]
    made, gradient = said["generate, 2 classes, 4 texts each"], said["5 steps of PEFT's LoRA, 2 classes, 4 texts each"]
    assert 0 < made["p50_ms"] <= made["p95_ms"]
    ratio = said["100 steps of PEFT's LoRA by a generated adapter, 2 classes, 4 texts each"]["ratio"]
    assert ratio == pytest.approx(20 * gradient["p50_ms"] / made["p50_ms"], abs=0.06)


def test_the_gradient_steps_change_the_adapter_and_leave_the_base(tmp_path: Path) -> None:
    bundle = make_adapter_bundle(BaseModel(str(write_base(tmp_path / "base")), 64), "base")
    texts, labels = made_texts(2, 4)
    before = bundle.body.features(texts)
    run = gradient_steps(bundle, texts, labels)
    model = next(cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
    lora_b = next(p for name, p in model.named_parameters() if "lora_B" in name)
    assert not lora_b.any()
    run()
    assert lora_b.any()
    assert torch.equal(bundle.body.features(texts), before)
