"""PEFT loads our folders unchanged, for each shape of base model, and answers as we do; what it does not is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.adapters import Adapter, BaseModel, read_folder, write_folder
from ltdi.adapters import check as checks
from ltdi.adapters.check import delta_norm, logits, verify
from ltdi.errors import ForeignBase, GenerationFailed
from tests.ltdi.adapters.made import (
    KINDS,
    LABELS,
    PAIRS,
    TEXTS,
    in_memory,
    make_adapter_bundle,
    random_model,
    transformers,
    write_base,
)


def peft():
    """The library, or a skipped test."""
    transformers()
    return pytest.importorskip("peft", reason="the extra `lora` is not installed")


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> BaseModel:
    return in_memory(request.param)


@pytest.fixture(scope="module")
def adapter(base: BaseModel) -> Adapter:
    return make_adapter_bundle(base).generate(TEXTS, LABELS, fallback="none")


def answers(model: torch.nn.Module, base: BaseModel, items: list) -> torch.Tensor:
    with torch.no_grad():
        return model(**base.tokens(items)).logits


def test_peft_loads_the_folder_unchanged_and_answers_alike(base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_folder(adapter, tmp_path / "one")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = peft().PeftModel.from_pretrained(random_model(base.model.config.model_type, ways=3), folder).eval()
    held = peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    assert set(held) == set(adapter.tensors)
    assert all(torch.equal(held[name], adapter.tensors[name]) for name in held)
    for items in (TEXTS, PAIRS):
        assert torch.allclose(answers(model, base, items), logits(adapter, base, items), atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(answers(model, base, TEXTS), logits(adapter, base, TEXTS), atol=1e-2)


def test_a_folder_that_peft_has_saved_is_read_and_answers_alike(base: BaseModel, tmp_path: Path) -> None:
    """The other way round: matrices that PEFT drew itself."""
    library = peft()
    config = library.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=list(base.target.target_modules), init_lora_weights=False
    )
    model = library.get_peft_model(random_model(base.model.config.model_type, ways=3), config).eval()
    model.save_pretrained(tmp_path)
    found = read_folder(tmp_path)
    assert (found.r, found.labels) == (3, ("0", "1", "2"))
    assert torch.allclose(answers(model, base, TEXTS), logits(found, base, TEXTS), atol=1e-5)


def test_the_check_says_what_it_did(base: BaseModel, adapter: Adapter) -> None:
    version = peft().__version__
    checked = verify(adapter, base, TEXTS)
    assert checked.checks == ("files", "keys", "logits", f"peft {version}") and checked.difference < 1e-5
    assert checked.logit_change > 0.01 and checked.delta_norm > 0.01


def test_the_norm_of_the_delta_is_that_of_the_matrices(base: BaseModel, adapter: Adapter) -> None:
    added = torch.cat([(adapter.scale * b @ a).flatten() for a, b in adapter.lora.values()])
    own = torch.cat([base.model.get_submodule(path).weight.flatten() for path in adapter.lora])
    assert delta_norm(adapter, base) == pytest.approx(float(added.norm() / own.norm()), rel=1e-4)


def test_without_peft_the_rest_is_checked_and_said(base: BaseModel, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "peft_installed", lambda: False)
    assert verify(adapter, base, TEXTS).checks == ("files", "keys", "logits")


def broken(adapter: Adapter, change: str) -> Adapter:
    tensors = dict(adapter.tensors)
    name = next(name for name in tensors if "lora_A" in name)
    if change == "missing module":
        del tensors[name], tensors[name.replace("lora_A", "lora_B")]
    elif change == "unexpected module":
        for one in (name, name.replace("lora_A", "lora_B")):
            tensors[one.replace("layer.0", "layer.7").replace("layers.0", "layers.7")] = tensors[one]
    elif change == "wrong shape":
        tensors[name] = torch.zeros(adapter.r, 7)
    return replace(adapter, tensors=tensors)


@pytest.mark.parametrize("change", ["missing module", "unexpected module", "wrong shape"])
def test_keys_and_shapes_are_compared_both_ways(base: BaseModel, adapter: Adapter, change: str) -> None:
    with pytest.raises(ForeignBase, match=r"lacks|has no place for|takes"):
        broken(adapter, change).check_target(base.target)
    with pytest.raises(GenerationFailed, match="does not load back"):
        verify(broken(adapter, change), base, TEXTS)


def test_what_peft_only_warns_of_is_a_failure(base: BaseModel, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT serves the base model in silence where LoRA keys are missing, but for a warning."""
    peft()
    monkeypatch.setattr(Adapter, "check_target", lambda self, target: None)
    with pytest.raises(GenerationFailed, match=r"PEFT warns of the adapter: .*missing adapter keys"):
        verify(broken(adapter, "missing module"), base, TEXTS)


def test_another_answer_of_peft_is_a_failure(base: BaseModel, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    peft()
    wrong = replace(adapter, lora_alpha=adapter.lora_alpha * 1.5)
    right = checks.to_files(adapter)
    monkeypatch.setattr(checks, "to_files", lambda one: right)
    with pytest.raises(GenerationFailed, match="answers differently"):
        verify(wrong, base, TEXTS)
    monkeypatch.setattr(checks, "from_files", lambda weights, config: wrong)
    with pytest.raises(GenerationFailed, match="PEFT answers differently"):
        verify(wrong, base, TEXTS)


def test_the_model_is_as_before_after_an_adapter(base: BaseModel, adapter: Adapter) -> None:
    before = base.features(TEXTS)
    changed = base.features(TEXTS, adapter.lora, adapter.scale)
    assert not torch.allclose(before, changed, atol=1e-2)
    assert torch.equal(base.features(TEXTS), before)
    with pytest.raises(KeyError):
        base.features(TEXTS, {"no.such.module": next(iter(adapter.lora.values()))})
    assert torch.equal(base.features(TEXTS), before)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])  # for Qwen2 transformers makes a tokenizer of its own of any words
def test_a_user_loads_it_on_the_base_from_its_folder(kind: str, tmp_path: Path) -> None:
    """The lines of the card: transformers brings a fresh head, PEFT replaces it."""
    folder = write_base(tmp_path / "base", kind)
    base = BaseModel(str(folder), 16)
    made = make_adapter_bundle(base).generate(TEXTS, LABELS, base_model_name_or_path=str(folder), fallback="none")
    write_folder(made, tmp_path / "adapter")
    plain = transformers().AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    model = peft().PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.allclose(answers(model, base, TEXTS), logits(made, base, TEXTS), atol=1e-5)
    assert [made.labels[row] for row in answers(model, base, TEXTS).argmax(-1)] == LABELS


def test_a_decoder_without_a_padding_token_pads_with_its_last(tmp_path: Path) -> None:
    write_base(tmp_path / "base", "llama", pad_token_id=None)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (file := tmp_path / "base" / name).is_file():
            said = {key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"}
            file.write_text(json.dumps(said | {"eos_token": "[SEP]"}))
    base = BaseModel(str(tmp_path / "base"), 16)
    assert base.tokenizer.pad_token == "[SEP]" and base.model.config.pad_token_id == 3
    made = make_adapter_bundle(base).generate(TEXTS, LABELS, fallback="none")
    assert [made.labels[row] for row in logits(made, base, TEXTS).argmax(-1)] == LABELS
