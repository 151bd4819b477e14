"""A generator of adapters as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltdi.adapters.maker import AdapterConfig, AdapterMaker, load_maker, save_maker
from ltdi.errors import DamagedFile
from tests.ltdi.adapters.test_bank import a_bank, a_generator
from tests.tiny_bert import tiny_bert, tiny_tokens


def a_maker() -> AdapterMaker:
    config = AdapterConfig("nowhere", "", 20, 2.0, tuple("abcde"))
    return AdapterMaker(config, a_generator().eval(), a_bank()[0], tiny_bert().lora_a)


def test_a_folder_brings_the_same_generator_back(tmp_path: Path) -> None:
    maker = a_maker()
    save_maker(tmp_path, maker)
    again = load_maker(tmp_path)
    assert again.config == maker.config
    labels = torch.arange(2).repeat_interleave(4)
    made = [one.generator.generate(tiny_bert(), one.bank, tiny_tokens(8), labels, 2) for one in (maker, again)]
    assert torch.equal(made[0].lora_b, made[1].lora_b)
    assert torch.equal(made[0].classifier, made[1].classifier)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    save_maker(tmp_path, a_maker())
    (tmp_path / "config.json").write_text('{"model": "x"}')
    with pytest.raises(DamagedFile, match="is not whole"):
        load_maker(tmp_path)
