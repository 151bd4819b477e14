"""From examples to an adapter, and a bundle in its folder."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ltdi
from ltdi.adapters import AdapterBundle, BaseModel, predictors, to_safetensors
from ltdi.adapters.base import Batches
from ltdi.adapters.check import logits
from ltdi.adapters.generate import _Seen
from ltdi.adapters.predictor import Evidence, Prediction, Predictor, PredictorConfig, Space
from ltdi.adapters.quick import Bfloat16Linear, FirstTokenLayer, first_token, merged
from ltdi.bundle import HeadRequest
from ltdi.errors import (
    BodyMissing,
    DamagedBase,
    DamagedFile,
    ForeignBase,
    GenerationFailed,
    InvalidConfig,
    InvalidInput,
    InvalidSupport,
    InvalidText,
    LimitExceeded,
    UnsupportedInput,
)
from ltdi.files import digest
from ltdi.pipeline import Options
from tests.ltdi.adapters.made import (
    KINDS,
    LABELS,
    PAIRS,
    TEXTS,
    in_memory,
    make_adapter_bundle,
    random_parts,
    write_base,
)


class Named(Predictor):
    """A toy that reads the names of the classes alone."""

    def forward(self, evidence: Evidence) -> Prediction:
        names = evidence.names()
        told = 0.0 if names is None else float(names.mean(0)[:8].mean())
        return Prediction(torch.full((self.space.modules, self.space.directions), told))


class Spread(Predictor):
    """A toy that does look: how far each class is from the others, and features under the first direction."""

    def __init__(self, space: Space, sizes: tuple[int, ...] = ()) -> None:
        super().__init__(space, sizes)
        self.layer = nn.Linear(2, space.modules * space.directions)
        self.seen: list[int] = []

    def forward(self, evidence: Evidence) -> Prediction:
        self.seen.append(len(evidence.features))
        means = torch.stack([evidence.features[evidence.class_index == row].mean(0) for row in range(evidence.ways)])
        first = torch.eye(self.space.directions)[:1].expand(self.space.modules, -1)
        moved = (evidence.look(first) - evidence.features).abs().mean()
        assert evidence.pooled().shape == (len(evidence.class_index), 32)
        made = self.layer(torch.stack([means.std(0).mean(), moved]))
        return Prediction(made.view(self.space.modules, self.space.directions), evidence.features.mean(0))


class Headed(Spread):
    """The same with a head of its own: class means, less what the prediction noted."""

    def head(self, features: Tensor, class_index: Tensor, ways: int, prediction: Prediction) -> Tensor:
        rows = torch.stack([features[class_index == row].mean(0) for row in range(ways)]) - prediction.notes
        return torch.cat([rows, -rows.square().sum(1, keepdim=True) / 2], 1)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return in_memory("bert")


@pytest.fixture(scope="module")
def bundle(base: BaseModel) -> AdapterBundle:
    return make_adapter_bundle(base, fallback_margin=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle beside its base model."""
    write_base(tmp_path / "toy" / "base")
    make_adapter_bundle(BaseModel(str(tmp_path / "toy" / "base"), 16), "base").save(tmp_path / "toy")
    return tmp_path / "toy"


def test_an_adapter_comes_with_facts_that_its_file_keeps(bundle: AdapterBundle) -> None:
    made = bundle.generate(TEXTS, LABELS, seed=5, fallback="none")
    assert made.labels == ("card", "film", "refund") and made.base_model_name_or_path == "made/tiny"
    facts = made.metadata
    assert (facts["model"], facts["method"], facts["seed"], facts["body"]) == ("toy-lora", "generated", 5, "transformer")
    assert facts["effect"]["delta_norm"] > 0 and facts["effect"]["support_agreement"] == 1.0
    assert 0 <= facts["support_accuracy"] <= 1 and facts["checks"][:3] == ["files", "keys", "logits"]
    assert bundle.generate(TEXTS, LABELS, check=False).support_accuracy is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_separates_its_own_examples(kind: str) -> None:
    own = in_memory(kind)
    made = make_adapter_bundle(own).generate(TEXTS, LABELS, fallback="none")
    assert [made.labels[row] for row in logits(made, own, TEXTS).argmax(-1)] == LABELS


def test_order_and_names_of_the_classes_permute_the_rows_to_the_bit(bundle: AdapterBundle) -> None:
    made = bundle.generate(TEXTS, LABELS, classes=["card", "film", "refund"], fallback="none")
    order = [3, 5, 0, 4, 2, 1]
    other = {"card": "z", "film": "y", "refund": "x"}
    again = bundle.generate([TEXTS[i] for i in order], [other[LABELS[i]] for i in order], classes=["x", "y", "z"], fallback="none")
    assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors if "lora" in name)
    assert torch.equal(made.head[1], again.head[1].flip(0)) and torch.equal(made.head[2], again.head[2].flip(0))
    assert again.metadata["support_digest"] == made.metadata["support_digest"]


def test_the_same_task_gives_the_same_bytes(bundle: AdapterBundle) -> None:
    one, two = (to_safetensors(bundle.generate(TEXTS, LABELS, seed=1)) for _ in range(2))
    assert one == two
    assert to_safetensors(bundle.generate(TEXTS, LABELS, seed=1, base_model_name_or_path="other")) != one


def test_the_baseline_comes_back_where_the_folds_say_so(base: BaseModel) -> None:
    bundle = make_adapter_bundle(base, fallback_margin=-1.0)
    made = bundle.generate(TEXTS, LABELS)
    assert made.method == "baseline" and made.metadata["effect"] == {"delta_norm": 0.0, "logit_change": 0.0, "support_agreement": 1.0}
    assert bundle.generate(TEXTS, LABELS, fallback="none").method == "generated"
    mean = make_adapter_bundle(base, fallback_margin=-1.0, baseline="mean").generate(TEXTS, LABELS)
    assert mean.method == "baseline" and mean.support_accuracy == mean.baseline_support_accuracy
    assert mean.metadata["effect"]["delta_norm"] > 0.1


def test_coefficients_choose_a_point_between_the_directions(base: BaseModel) -> None:
    parts, order = make_adapter_bundle(base, directions=3).parts, base.target.modules
    rows = torch.tensor([[1.0, 0.0, -2.0]]) * torch.arange(1, 5)[:, None]
    made = parts.at(rows, order)
    for times, module in enumerate(order, 1):
        a, b = made[module.path]
        assert torch.equal(a, parts.lora_a[module.path])
        moved = parts.directions[module.path][0] - 2 * parts.directions[module.path][2]
        assert torch.allclose(b, parts.mean[module.path] + times * moved, atol=1e-5)
    assert all(torch.equal(b, parts.mean[path]) for path, (_, b) in parts.at(torch.zeros(4, 3), order).items())


def test_a_predictor_sees_the_task_and_each_fold_without_what_is_held_out(base: BaseModel) -> None:
    torch.manual_seed(0)
    chosen = Spread(Space(4, 3, 32))
    bundle = make_adapter_bundle(base, directions=3, predictor=chosen)
    made = bundle.generate(TEXTS, LABELS, fallback="none")
    assert chosen.seen == [6, 3, 3]
    path = next(iter(made.lora))
    assert not torch.allclose(made.lora[path][1], bundle.parts.mean[path])
    other = bundle.generate(TEXTS[:4], LABELS[:4], fallback="none", check=False)
    assert not torch.allclose(made.lora[path][1], other.lora[path][1]) and chosen.seen[3:] == [4]


@pytest.mark.parametrize(("near", "folds"), [(0.0, 2), (10.0, 0)])
def test_features_are_made_once_for_all_folds(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, near: float, folds: int
) -> None:
    monkeypatch.setattr("ltdi.adapters.generate.NEAR", near)
    passes: list[int] = []
    real = BaseModel._each

    def size_of(items: Batches | tuple) -> int:
        return len(items.places if isinstance(items, Batches) else items)

    monkeypatch.setattr(BaseModel, "_each", lambda *arguments: passes.append(size_of(arguments[1])) or real(*arguments))
    torch.manual_seed(0)
    bundle = make_adapter_bundle(base, directions=3, predictor=Spread(Space(4, 3, 32)), baseline="mean")
    bundle.generate(TEXTS, LABELS, fallback="none")
    whole = [count for count in passes if count == len(TEXTS)]
    assert len(whole) == 1 + 1 + 1 + 1 + folds  # the mean, the one that is looked at, the plain base, that of the support; of folds


def test_the_plain_base_is_pooled_over_its_tokens(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = base.tokens(TEXTS)
    hidden = base.model.bert(**batch).last_hidden_state
    rows = [row[mask == 1].mean(0) for row, mask in zip(hidden, batch["attention_mask"], strict=True)]
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: False)
    assert torch.allclose(base.to("cpu").pooled(TEXTS), torch.stack(rows), atol=1e-6)


def test_looks_by_bfloat16_products_are_near_and_share_the_rest_of_the_model(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: True)
    exact, quick = base.to("cpu").features(TEXTS), base.features(TEXTS, quick=True)
    assert 0 < (exact - quick).norm() < 0.03 * exact.norm()
    assert base.quick is not base.model
    word = "embeddings.word_embeddings"
    assert base.quick.base_model.get_submodule(word).weight is base.model.base_model.get_submodule(word).weight
    assert isinstance(base.model.base_model.get_submodule("pooler.dense"), torch.nn.Linear)


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_layer_of_the_first_token_alone_gives_the_same_features(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: True)
    base = in_memory(kind)
    rows = [(name, module) for name, module in base.quick.named_modules() if isinstance(module, FirstTokenLayer)]
    assert len(rows) == (kind in ("bert", "roberta"))
    seen, batch = [], base.tokens(TEXTS)
    handles = [module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1])) for _, module in rows]
    with torch.inference_mode():
        whole = base.quick(**batch).logits
        with first_token(base.quick):
            alone = base.quick(**batch).logits
    [handle.remove() for handle in handles]
    assert torch.allclose(whole, alone, atol=0.02 * float(whole.abs().max()))
    assert seen == [batch["input_ids"].shape[1], 1][: 2 * len(rows)]
    original = base.model.base_model.encoder.layer[-1] if rows else None
    assert original is None or not isinstance(original, FirstTokenLayer)


def test_the_last_layer_of_few_digits_is_that_of_transformers(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: True)
    last = base.to("cpu").quick.base_model.encoder.layer[-1]
    batch = base.tokens(TEXTS)
    hidden = base.quick.base_model.embeddings(batch["input_ids"])
    own = type(base.model.base_model.encoder.layer[-1])(base.model.config).eval()
    own.attention, own.intermediate, own.output = last.attention, last.intermediate, last.output
    mask = batch["attention_mask"][:, None, None].bool()
    with torch.inference_mode():
        assert not mask.all() and torch.allclose(own(hidden, mask), last(hidden, mask), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_lora_is_lora_to_few_digits_and_leaves_no_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: True)
    base = in_memory(kind)
    parts = random_parts(base, 4, 1)
    lora, plain = parts.baseline("mean"), base.features(TEXTS, quick=True)
    exact, quick = (base.features(TEXTS, lora, 2.0, parts.saved, quick) for quick in (False, True))
    assert (exact - quick).norm() < 0.03 * exact.norm()
    assert (exact - plain).norm() > 0.1 * exact.norm()
    with pytest.raises(KeyError, match="stop"), merged(base.quick, lora, 2.0):
        raise KeyError("stop")
    assert torch.equal(base.features(TEXTS, quick=True), plain)


def test_threads_do_not_see_each_other_s_lora(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: True)
    base.to("cpu")
    adapters = [random_parts(base, 4, 1, size=size).baseline("mean") for size in (0.1, 0.5)]
    alone = [base.features(TEXTS, lora, 2.0, quick=True) for lora in adapters]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: base.features(TEXTS, adapters[i % 2], 2.0, quick=True), range(40)))
    assert all(torch.equal(one, alone[i % 2]) for i, one in enumerate(found))


def test_a_model_of_few_digits_that_answers_otherwise_is_found_out(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: True)
    base.to("cpu")
    real = Bfloat16Linear.forward
    monkeypatch.setattr(Bfloat16Linear, "forward", lambda self, x: -0.3 * real(self, x))
    with pytest.raises(GenerationFailed, match="few digits"):
        make_adapter_bundle(base, directions=3).generate(TEXTS, LABELS, fallback="none")


def test_names_without_letters_say_nothing(base: BaseModel) -> None:
    bundle = make_adapter_bundle(base, directions=3)
    for names, told in ((("0", "1"), False), (("a", "b"), False), (("spam", "1"), True)):
        assert (_Seen(bundle, TEXTS, names, torch.arange(2), inf).names is not None) == told


def test_a_description_is_read_in_place_of_a_name(base: BaseModel) -> None:
    torch.manual_seed(0)
    bundle = make_adapter_bundle(base, directions=3, predictor=Named(Space(4, 3, 32)))
    labels = [{"card": "0", "refund": "1", "film": "2"}[label] for label in LABELS]
    said = {"0": "a card", "1": "a refund", "2": "a film"}
    path = next(iter(bundle.parts.mean))

    def lora_of(own: list[str], descriptions: dict[str, str] | None = None) -> torch.Tensor:
        return bundle.generate(TEXTS, own, descriptions=descriptions, check=False, fallback="none").lora[path][1]

    described, plain = lora_of(labels, said), lora_of(labels)
    assert not torch.allclose(described, plain)
    assert torch.equal(described, lora_of(LABELS, {"card": "a card", "refund": "a refund", "film": "a film"}))
    assert torch.equal(described, lora_of(["a card" if label == "0" else label for label in labels], {"1": "a refund", "2": "a film"}))


def test_a_predictor_may_bring_its_head(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.adapters.base.pays", lambda device: False)
    base.to("cpu")
    torch.manual_seed(0)
    chosen = Headed(Space(4, 3, 32))
    made = make_adapter_bundle(base, directions=3, predictor=chosen).generate(TEXTS, LABELS, fallback="none")
    _, weight, bias = made.head
    assert torch.allclose(bias, -weight.square().sum(1) / 2, atol=1e-4) and 0 <= made.support_accuracy <= 1
    features = base.features(TEXTS, made.lora, made.scale)
    assert torch.allclose(weight[0], features[:2].mean(0) - make_mean(base), atol=1e-4)


def make_mean(base: BaseModel) -> Tensor:
    """Of the features under the mean adapter."""
    bundle = make_adapter_bundle(base, directions=3)
    return base.features(TEXTS, bundle.parts.baseline("mean"), 2.0).mean(0)


def test_a_bundle_survives_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ltdi.load_bundle(folder, device="cpu")
    assert isinstance(loaded, AdapterBundle) and loaded.kind == "lora"
    own = make_adapter_bundle(BaseModel(str(folder / "base"), 16), "base")
    own.digest = loaded.digest
    assert to_safetensors(loaded.generate(PAIRS, list("aabb"))) == to_safetensors(own.generate(PAIRS, list("aabb")))
    assert loaded.config == own.config
    with pytest.raises(InvalidConfig, match="a body of its own"):
        ltdi.load_bundle(folder, body=loaded.body)  # type: ignore[arg-type]
    monkeypatch.setitem(predictors.PREDICTORS, "spread", Spread)
    learned = make_adapter_bundle(BaseModel(str(folder / "base"), 16), directions=2, predictor=Spread(Space(4, 2, 32)))
    object.__setattr__(learned.config, "predictor", PredictorConfig("spread"))
    learned.save(folder)
    again = ltdi.load_bundle(folder, device="cpu")
    assert torch.equal(again.predictor.layer.weight, learned.predictor.layer.weight)


def redo(folder: Path, change) -> None:
    """Change a bundle's config and give it the digest that belongs to it."""
    config = json.loads((folder / "bundle.json").read_text())
    change(config)
    (folder / "bundle.json").write_text(json.dumps(config))
    (folder / "digest").write_text(digest((folder / "bundle.json").read_bytes(), (folder / "weights.safetensors").read_bytes()))


def test_a_bundle_that_was_changed_is_refused(folder: Path) -> None:
    (folder / "digest").write_text("0" * 64)
    with pytest.raises(DamagedFile, match="does not match its digest"):
        ltdi.load_bundle(folder)


BAD = [
    ("version", lambda c: c.update(format_version=9), "of version 1"),
    ("unknown key", lambda c: c.update(rr=1), "unknown key 'rr'"),
    ("rank", lambda c: c.update(r=5), "expected"),
    ("no rank", lambda c: c.update(r=0), "r is 0"),
    ("predictor", lambda c: c["predictor"].update(name="oracle"), "predictor 'oracle' is unknown"),
    ("directions", lambda c: c.update(directions=4), "expected"),
    ("baseline", lambda c: c.update(baseline="best"), "baseline 'best' is unknown"),
    ("modules", lambda c: c["target"]["modules"].pop(), "modules"),
    ("a text for a number", lambda c: c.update(r="4"), "expected int"),
]


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_configs_that_do_not_fit_are_refused(folder: Path, change, words: str) -> None:
    redo(folder, change)
    with pytest.raises(DamagedFile, match=words):
        ltdi.load_bundle(folder)


def generate(folder: Path):
    return ltdi.load_bundle(folder, device="cpu").generate(TEXTS, LABELS)


@pytest.mark.parametrize(("changes", "words"), [
    ({"hidden_size": 64}, "hidden size 64; this was made for 32"),
    ({"num_hidden_layers": 3}, "layers of 3; this was made for 2"),
    ({"vocab_size": 40}, "vocabulary of size 40"),
])  # fmt: skip
def test_a_foreign_base_is_refused_with_the_reason(folder: Path, changes: dict, words: str) -> None:
    write_base(folder / "base", **changes)
    with pytest.raises(ForeignBase, match=words):
        generate(folder)


def test_a_base_with_other_tokens_or_weights_is_refused(folder: Path) -> None:
    text = (folder / "base" / "tokenizer.json").read_text()
    (folder / "base" / "tokenizer.json").write_text(text.replace('"refund"', '"rebate"'))
    with pytest.raises(ForeignBase, match="the vocabulary digest"):
        generate(folder)
    (folder / "base" / "tokenizer.json").write_text(text)
    weights = bytearray((folder / "base" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "base" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ForeignBase, match="the weights digest"):
        generate(folder)


def test_a_damaged_base_is_refused_also_where_no_digest_is_known(folder: Path) -> None:
    redo(folder, lambda c: c["target"]["base"].update(weights_digest=""))
    weights = (folder / "base" / "model.safetensors").read_bytes()
    (folder / "base" / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(DamagedBase, match=r"damaged weights|cannot be loaded"):
        generate(folder)
    (folder / "base" / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(DamagedBase, match="NaN or infinity"):
        generate(folder)
    (folder / "base" / "config.json").write_text("{")
    with pytest.raises(DamagedBase, match="cannot be loaded"):
        generate(folder)


def test_a_target_that_is_not_the_model_s_is_refused(folder: Path) -> None:
    redo(folder, lambda c: c["target"].update(target_modules=["key", "value"]))
    with pytest.raises(ForeignBase, match="other layers or another head"):
        generate(folder)


def test_no_reason_names_a_path(folder: Path) -> None:
    redo(folder, lambda c: c["target"]["base"].update(weights_digest=""))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (folder / "base" / name).write_text("{")
        with pytest.raises((DamagedBase, BodyMissing)) as caught:
            generate(folder)
        assert str(folder.parent) not in str(caught.value)


def test_a_base_that_is_not_there_is_missing_with_the_remedy(folder: Path) -> None:
    (folder / "base").rename(folder / "moved")
    with pytest.raises(BodyMissing, match=r"ltdi\[text,lora\]"):
        generate(folder)


TASKS = [
    (["a"], ["x"], InvalidSupport, "1 class"),
    (["a", "b"], ["x"], InvalidSupport, "2 examples and 1 labels"),
    (["a", ""], ["x", "y"], InvalidText, "empty"),
    (["a", ("b", "c")], ["x", "y"], InvalidText, "not mixed"),
    ([("a", "b", "c"), ("b", "c")], ["x", "y"], InvalidText, "pair of two"),
    (["card " * 40, "b"], ["x", "y"], InvalidText, "42 tokens; this body reads 16"),
    ("ab", ["x", "y"], UnsupportedInput, "list of texts"),
    (torch.zeros(2, 32), ["x", "y"], UnsupportedInput, "list of texts"),
    (["a"] * 65 + ["b"], ["x"] * 65 + ["y"], LimitExceeded, "at most 64"),
]


@pytest.mark.parametrize(("inputs", "labels", "error", "words"), TASKS, ids=[row[3] for row in TASKS])
def test_tasks_that_cannot_be_are_refused(bundle: AdapterBundle, inputs, labels: list, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        bundle.generate(inputs, labels)


def test_long_texts_are_cut_where_that_is_said(bundle: AdapterBundle) -> None:
    made = bundle.generate(["card " * 40, "film"], ["x", "y"], truncate=True)
    assert made.labels == ("x", "y")
    assert bundle.too_long(bundle.support(["card " * 40, "film"], ["x", "y"], truncate=True)) == 1


def test_what_is_of_heads_is_refused(bundle: AdapterBundle) -> None:
    task = bundle.support(TEXTS, LABELS)
    for options, words in ((Options(draws=3), "no draws"), (Options(refine_steps=2), "no refine_steps")):
        with pytest.raises(UnsupportedInput, match=words):
            bundle.generate_many([HeadRequest(task, options)])
    with pytest.raises(UnsupportedInput, match="does not use unlabelled"):
        bundle.support(TEXTS, LABELS, unlabelled=["a card"])
    with pytest.raises(UnsupportedInput, match="as texts by label"):
        bundle.support(TEXTS, LABELS, descriptions={"card": torch.ones(32)})
    with pytest.raises(InvalidSupport, match="'parcel' has no example"):
        bundle.support(TEXTS, LABELS, descriptions={"parcel": "a parcel"})
    with pytest.raises(UnsupportedInput, match="as texts by label"):
        bundle.support(TEXTS, LABELS, descriptions=["a card"])  # type: ignore[arg-type]
    with pytest.raises(InvalidText, match="tokens; this body reads") as long:
        bundle.support(TEXTS, LABELS, descriptions={"card": "card " * 40})
    assert long.value.field == "descriptions/card"
    cut = bundle.support(TEXTS, LABELS, descriptions={"card": "card " * 40}, truncate=True)
    assert bundle.too_long(cut) == 1
    for name in ("", " ", "a\nb", "x" * 1001, 5):
        with pytest.raises(InvalidInput, match="printable name"):
            bundle.generate(TEXTS, LABELS, base_model_name_or_path=name)  # type: ignore[arg-type]
