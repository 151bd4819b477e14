"""The adapter bundle that ships: on texts of its own, as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.adapters import AdapterBundle, folder_of, write_folder
from ltdi.bodies.sentence import model_folder

NAME = "minilm-lora"
pytestmark = [
    pytest.mark.skipif(NAME not in ltdi.shipped_bundles(), reason=f"no bundle named {NAME} is shipped"),
    pytest.mark.skipif(model_folder("all-MiniLM-L6-v2") is None, reason="the packaged all-MiniLM-L6-v2 is not installed"),
]
GOOD = (
    "the soup was wonderful", "friendly staff and a lovely room", "we will surely come back", "best pasta in town",
    "a charming little place", "everything tasted fresh", "the waiter could not have been kinder", "worth every penny",
)  # fmt: skip
BAD = (
    "the soup was cold and bland", "rude staff and a dirty room", "we will never come back", "worst pasta in town",
    "a dreary little place", "everything tasted stale", "the waiter ignored us all evening", "a waste of money",
)  # fmt: skip
NEW = {
    "positive": ("a delightful evening", "great coffee and a warm welcome", "the fish was superb", "i loved the dessert", "simply excellent"),
    "negative": ("a disappointing evening", "awful coffee and no welcome at all", "the fish was off", "i hated the dessert", "simply terrible"),
}


@pytest.fixture(scope="module")
def bundle() -> AdapterBundle:
    pytest.importorskip("transformers", reason="the extra `text` is not installed")
    return ltdi.load_bundle(NAME, device="cpu")  # type: ignore[return-value]


def test_a_folder_from_sixteen_sentences_answers_in_peft(bundle: AdapterBundle, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    from transformers import AutoModelForSequenceClassification

    adapter = bundle.generate(GOOD + BAD, ["positive"] * len(GOOD) + ["negative"] * len(BAD))
    assert adapter.method == "generated" and adapter.support_accuracy > 0.7
    folder = write_folder(adapter, folder_of(tmp_path, "sentiment"))
    base = AutoModelForSequenceClassification.from_pretrained(model_folder("all-MiniLM-L6-v2"), num_labels=2)
    model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    right = 0
    for label, texts in NEW.items():
        with torch.inference_mode():
            answers = model(**bundle.body.tokens(texts)).logits.argmax(1)
        right += sum(adapter.labels[i] == label for i in answers.tolist())
    assert right >= 9


def test_the_names_of_the_classes_are_read(bundle: AdapterBundle) -> None:
    named, blank = (
        bundle.generate(GOOD + BAD, [a] * len(GOOD) + [b] * len(BAD), check=False)
        for a, b in (("positive", "negative"), ("a", "b"))
    )
    path = bundle.config.target.modules[-1].path
    assert not torch.allclose(named.lora[path][1], blank.lora[path][1], atol=1e-4)
    turned = bundle.generate(BAD + GOOD, ["negative"] * len(BAD) + ["positive"] * len(GOOD), check=False)
    assert torch.equal(named.lora[path][1], turned.lora[path][1])
    digests = [adapter.metadata["support_digest"] for adapter in (named, blank, turned)]
    assert digests[0] == digests[2] != digests[1]


def test_more_texts_of_a_class_than_are_compared_are_taken(bundle: AdapterBundle) -> None:
    texts = [f"{text}, visit {i}" for i in range(6) for text in GOOD + BAD]
    adapter = bundle.generate(texts, (["positive"] * len(GOOD) + ["negative"] * len(BAD)) * 6)
    assert adapter.support_accuracy > 0.7
