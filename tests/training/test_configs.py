"""Every named config: builds what it names; the tiny ones go the whole way by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.bundle import build_generator
from ltdi.cli import main
from ltdi.errors import InvalidConfig
from training.cards import WHY_DEFAULTS
from training.configs import EXPERIMENTS, experiment
from training.runs import Workspace
from training.statistics import statistics_of_episodes

COLUMN_OF = {"tiny": 4, "tiny-paper": 2}


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_config_makes_heads_of_its_shape(name: str, tmp_path) -> None:
    chosen = experiment(name)
    config = Workspace(chosen, tmp_path, tmp_path).bundle_config()
    generator = build_generator(config).eval()
    ways = config.head_sizes[-1] or 5
    noise = torch.randn(2, *generator.noise_shape(ways))
    support = torch.randn(2, ways, 3, config.head_sizes[0])
    with torch.inference_mode():
        tasks = generator.describe(statistics_of_episodes(support))
        assert generator.chain(tasks, noise).shape == noise.shape


def test_an_unknown_config_names_the_nearest() -> None:
    with pytest.raises(InvalidConfig, match="did you mean 'omniglot'"):
        experiment("omniglott")


@pytest.mark.parametrize("name", ["tiny", "tiny-paper"])
def test_a_tiny_config_goes_the_whole_way(name: str, tmp_path, capsys) -> None:
    common = ["--config", name, "--runs", str(tmp_path / "runs"), "--threads", "1"]
    bundle = tmp_path / "bundle"
    assert main(["prepare", *common]) == 0
    assert main(["meta-train", *common]) == 0
    assert main(["export", *common, "--out", str(bundle)]) == 0
    measure = ["evaluate", *common, "--bundle", str(bundle), "--episodes", "20", "--results", str(tmp_path)]
    assert main([*measure, "--part", "val"]) == 0 and not (bundle / "card.json").exists()
    assert main(measure) == 0
    assert "| generated head |" in capsys.readouterr().out
    result = json.loads((tmp_path / f"{name}.json").read_text())
    loaded = ltdi.load_bundle(bundle)
    assert result["bundle_digest"] == loaded.digest == loaded.card["bundle_digest"]
    assert loaded.card["text"].endswith(WHY_DEFAULTS)
    assert len(result["columns"]) == COLUMN_OF[name]
    ladder = loaded.card["validation_difference_by_eq2_weight"]
    assert list(ladder) == (["0.01"] if name == "tiny" else [])
    if name == "tiny":
        on_validation = json.loads((tmp_path / "tiny-val.json").read_text())["columns"]
        assert ladder["0.01"] == {column["protocol"]: column["difference"] for column in on_validation}
        assert "| 0.01 |" in (bundle / "card.md").read_text()
        elsewhere = ["--bundle", str(bundle), "--episodes", "5", "--results", str(tmp_path), "--on", "digits"]
        card = (bundle / "card.json").read_bytes()
        assert main(["evaluate", *common, *elsewhere]) == 0
        columns = json.loads((tmp_path / "tiny-on-digits.json").read_text())["columns"]
        assert [c["protocol"] for c in columns] == ["5-way 1-shot", "5-way 5-shot", "10-way 1-shot", "10-way 5-shot"]
        assert (bundle / "card.json").read_bytes() == card
        other = tmp_path / "runs" / "other"
        adopt = ["--config", name, "--runs", str(other), "--body-from", str(bundle), "--threads", "1"]
        assert main(["prepare", *adopt]) == 0 and not (other / name / "body.log.jsonl").exists()
        shard = Path(name) / "trajectories" / "shard-00000.safetensors"
        assert (other / shard).read_bytes() == (tmp_path / "runs" / shard).read_bytes()
        assert main(["prepare", *adopt[:4], "--threads", "1"]) == 0  # an adopted body is not trained further
    curve = (tmp_path / "runs" / name / "prepare.json").read_text()
    assert json.loads(curve)["experiment"]["name"] == name


def test_a_stage_that_lacks_the_one_before_says_which(tmp_path, capsys) -> None:
    assert main(["meta-train", "--config", "tiny", "--runs", str(tmp_path)]) != 0
    assert "ltdi prepare --config tiny" in capsys.readouterr().err
