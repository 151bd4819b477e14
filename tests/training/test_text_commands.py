"""The whole way of a text config on made sentences: prepare, meta-train, export, evaluate."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

import ltdi
from ltdi.cli import main
from training.bench import bench_whole_tasks
from training.cards import WHY_DEFAULTS
from training.configs.text import ANY_EMBEDDING, TEXT_EXPERIMENTS, Source
from training.data.texts import written_names
from training.geometry import GeometryTraining
from training.tasks import Mixture

SETS = ("snips", "webapps_intents", "acl_arc_citation_intent")
TINY = replace(
    ANY_EMBEDDING, encoders=("tfidf",), images=False, sources=tuple(Source(name) for name in SETS), table=SETS[:2],
    training=GeometryTraining(tasks=12, mixing_steps=5, mixing_batch=4, chain_steps=2, chain_batch=2),
    mixture=Mixture(pools=(5, 20), centre=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences made of their class's name and of words that all classes share."""
    folder, chance = tmp_path_factory.mktemp("data"), random.Random(0)
    for name in SETS:
        rows = []
        for label, words in written_names(name).items():
            for i in range(14):
                some = chance.sample(words.split(), max(1, len(words.split()) - 1)) + chance.choices(["please", "now", "a", "x", "y"], k=3)
                rows.append({"text": " ".join([*some, str(i)]), "label": label, "split": "test" if i > 9 else "train"})
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_the_whole_way(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(TEXT_EXPERIMENTS, "any-embedding", TINY)
    monkeypatch.chdir(tmp_path)
    common = ["--config", "any-embedding", "--data", str(data)]
    assert main(["prepare", *common]) == 0
    assert main(["meta-train", *common]) == 0
    trained = {path.name for path in (tmp_path / "runs" / "any-embedding").glob("*.safetensors")}
    assert trained == {f"without-{group}-seed0.safetensors" for group in ("snips", "webapps_intents", "nothing")}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "any-embedding").glob("*.safetensors")}
    assert main(["meta-train", *common]) == 0  # what is there stays
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert main(["export", *common, "--out", "bundle"]) == 0
    assert main(["evaluate", *common, "--bundle", "bundle", "--seeds", "2"]) == 0
    bundle = ltdi.load_bundle("bundle", device="cpu")
    assert bundle.card["bundle_digest"] == bundle.digest and bundle.config.calibration.reject_threshold(5) is not None
    assert bundle.card["text"].endswith(WHY_DEFAULTS)
    result = json.loads((tmp_path / "results" / "any-embedding.json").read_text())
    assert {cell["set"] for cell in result["cells"]} == {"snips", "webapps_intents"}
    easy = next(c for c in result["cells"] if c["set"] == "snips" and c["shots"] == 5 and c["information"] == "names")
    assert easy["generated"] > 60
    assert (tmp_path / "results" / "any-embedding.png").stat().st_size > 1000
    assert "mean over cells" in capsys.readouterr().out


def test_a_generator_that_was_not_trained_is_asked_for(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(TEXT_EXPERIMENTS, "any-embedding", TINY)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--config", "any-embedding", "--data", str(data)]) != 0
    assert "ltdi meta-train --config any-embedding --seed 0" in capsys.readouterr().err


def test_whole_tasks_are_timed(toy_features: ltdi.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.bench as timing

    monkeypatch.setattr(timing, "WHOLE_TASKS", ((3, 2),))
    monkeypatch.setattr(timing, "POOL", 20)
    figures = bench_whole_tasks(toy_features, rounds=2)["one_head"]
    assert len(figures) == 3 and all(row["p95_ms"] >= row["p50_ms"] > 0 for row in figures.values())
