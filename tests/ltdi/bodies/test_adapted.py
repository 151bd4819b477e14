"""The encoder with adapters: equal to the libraries' own, and each row under its own adapter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ltdi.bodies.adapted import AdaptedBert, load_weights, mean_pooled, tokenize
from ltdi.errors import UnsupportedInput
from tests.ltdi.adapters.made import PAIRS, transformers, write_base
from tests.tiny_bert import CONFIG, tiny_bert, tiny_tokens, tiny_weights


def an_adapter(seed: int, rank: int = 2) -> torch.Tensor:
    return torch.randn(2, 2, 16, rank, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_without_an_adapter_it_is_the_model_of_transformers() -> None:
    if find_spec("torchvision") is not None:
        from ltdi.torchvision_ops import declare_missing

        declare_missing()
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**CONFIG)).eval()
    model.load_state_dict(tiny_weights(), strict=False)
    tokens = tiny_tokens(4)
    with torch.no_grad():
        wanted = model(input_ids=tokens.ids, attention_mask=tokens.mask, token_type_ids=tokens.kinds)
    encoder = tiny_bert()
    hidden = encoder.hidden(tokens)
    real = tokens.mask.bool()
    assert torch.allclose(hidden[real], wanted.last_hidden_state[real], atol=1e-5)
    assert torch.allclose(encoder.pooler(hidden[:, 0]), wanted.pooler_output, atol=1e-5)


@pytest.mark.parametrize("pooler", [True, False])
def test_a_roberta_is_that_of_transformers(tmp_path: Path, pooler: bool) -> None:
    library = transformers()
    write_base(tmp_path, "roberta", pad_token_id=1, type_vocab_size=1)
    if pooler:
        library.RobertaModel.from_pretrained(tmp_path, add_pooling_layer=True).save_pretrained(tmp_path)
    config, weights = load_weights(tmp_path)
    encoder = AdaptedBert(config, weights, torch.zeros(2, 2, 2, 32))
    tokens = tokenize(tmp_path, *zip(*PAIRS, strict=True), most=16)
    assert tokens.kinds.any() and not tokens.mask.all() and not tokens.kinds[:, 0].any()
    model = library.RobertaModel.from_pretrained(tmp_path, add_pooling_layer=pooler).eval()
    with torch.no_grad():
        ids = tokens.ids.masked_fill(tokens.mask == 0, 1)
        wanted = model(input_ids=ids, attention_mask=tokens.mask)
        hidden = encoder.hidden(tokens)
    real = tokens.mask.bool()
    assert torch.allclose(hidden[real], wanted.last_hidden_state[real], atol=1e-5)
    first = wanted.pooler_output if pooler else torch.tanh(hidden[:, 0])
    assert torch.allclose(encoder.pooler(hidden[:, 0]), first, atol=1e-5)


def test_an_adapter_is_the_weights_with_b_a_added() -> None:
    encoder, lora_b, tokens = tiny_bert(), an_adapter(3), tiny_tokens(4)
    merged = tiny_weights()
    for i in range(2):
        for module, name in enumerate(("query", "value")):
            added = lora_b[i, module] @ encoder.lora_a[i, module] * encoder.scale
            merged[f"encoder.layer.{i}.attention.self.{name}.weight"] += added
    wanted = AdaptedBert(CONFIG, merged, encoder.lora_a).hidden(tokens)
    assert torch.allclose(encoder.hidden(tokens, lora_b[None]), wanted, atol=1e-5)


def test_rows_of_several_tasks_are_each_under_their_own_adapter() -> None:
    encoder, tokens = tiny_bert(), tiny_tokens(6)
    both = torch.stack([an_adapter(1), an_adapter(2)])
    together = encoder.hidden(tokens, both)
    for task in range(2):
        rows = torch.arange(3 * task, 3 * task + 3)
        alone = encoder.hidden(tokens.take(rows), both[task : task + 1])
        assert torch.allclose(together[rows], alone, atol=1e-5)


def test_padding_changes_nothing() -> None:
    encoder, tokens = tiny_bert(), tiny_tokens(4)
    short = tokens.take(torch.tensor([1]))
    full = mean_pooled(encoder.hidden(tokens), tokens.mask)[1]
    assert torch.allclose(mean_pooled(encoder.hidden(short), short.mask)[0], full, atol=1e-5)


def test_adapters_of_another_encoder_are_refused() -> None:
    with pytest.raises(UnsupportedInput, match="adapters are for 3 layers of 16; the encoder has 2 of 16"):
        AdaptedBert(CONFIG, tiny_weights(), torch.zeros(3, 2, 2, 16))
