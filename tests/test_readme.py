"""The README's own code, run: a head in NumPy, in scikit-learn and as ONNX."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ltdi import Bundle, Head
from tests.embedder import embedder
from tests.ltdi.test_experts import blobs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
X, Y = blobs(4, 3, 20, spread=0.8)


def block(word: str) -> str:
    """The one block of code that holds `word`."""
    (found,) = [code for code in BLOCKS if word in code]
    return found


@pytest.fixture(params=["l2", "center_l2", "none"])
def head(request: pytest.FixtureRequest, toy_features: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Head:
    monkeypatch.chdir(tmp_path)
    made = toy_features.generate(X, [f"c{i}" for i in Y.tolist()])
    mean = X.mean(0) if request.param == "center_l2" else None
    (layer,) = made.layers
    head = Head([(layer.weight, layer.bias)], made.labels, normalise=request.param, feature_mean=mean, temperature=3.0)
    head.save("head.safetensors")
    return head


def test_ten_lines_of_numpy_answer_alike(head: Head) -> None:
    names = {"features": X.numpy()}
    exec(block("np.maximum"), names)
    assert names["labels"] == head.predict(X)
    assert np.allclose(names["logits"], head(X).detach().numpy(), atol=1e-3)


def test_the_onnx_file_answers_alike(head: Head) -> None:
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    exec(block("onnx.save"), {})
    session = onnxruntime.InferenceSession("head.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"features": X.numpy()})
    assert torch.allclose(torch.from_numpy(probabilities), head.predict_proba(X), atol=1e-4)


def test_scikit_learn_as_shown(toy_features: Bundle) -> None:
    head = toy_features.generate(X, [f"c{i}" for i in Y.tolist()])
    names = {"head": head, "features": X.numpy()}
    exec(block("to_sklearn"), names)
    assert list(names["classifier"].predict(X.numpy())) == head.predict(X)


def test_the_bundle_beside_an_embedding_server_runs_as_shown(toy_features: Bundle) -> None:
    with embedder() as server:
        code = block("RemoteBody").replace("http://localhost:8081", server.url).replace("from ltdi import load_bundle", "")
        names = {"load_bundle": lambda name, body: toy_features.with_body(body), "log_lines": ["my card!", "pay me back"]}
        exec(code, names)
    assert names["head"].labels == ["lost_card", "refund"]


def test_the_notebook_runs_as_shown(toy_text: Bundle, toy_features: Bundle) -> None:
    bundles = {"minilm": toy_text, "any-embedding": toy_features}
    code = block("bundle.add_class").replace("from ltdi import load_bundle", "")
    names = {
        "load_bundle": bundles.__getitem__, "log_lines": ["my card!", "pay me back", "where is my card"],
        "features": X, "labels": [f"c{i}" for i in Y.tolist()], "more_features": X,
    }  # fmt: skip
    code = code.replace("head.none_of_these(features)", 'head.none_of_these(bundle.embed(["x"]))')
    exec(code, names)
    assert names["head"].labels == ["c0", "c1", "c2", "c3"]


def test_an_adapter_is_made_and_loaded_by_peft_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    from ltdi.adapters import BaseModel
    from tests.ltdi.adapters.made import LABELS, TEXTS, make_adapter_bundle, write_base

    write_base(tmp_path / "toy-lora" / "base")
    make_adapter_bundle(BaseModel(str(tmp_path / "toy-lora" / "base"), 16), "base").save(tmp_path / "toy-lora")
    monkeypatch.chdir(tmp_path)
    names = {"texts": TEXTS, "labels": LABELS}
    exec(block("PeftModel").replace('"the-base"', '"toy-lora/base"').replace('"minilm-lora"', '"toy-lora"'), names)
    assert names["model"].active_adapter == "default" and names["adapter"].base_model_name_or_path == "org/the-base"
