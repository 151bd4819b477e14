"""A generator of adapters in a folder: `config.json` and `weights.safetensors`, strictly read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor

from ltdi.adapters.bank import Bank
from ltdi.adapters.generator import AdapterGenerator
from ltdi.denoisers.adapter_tokens import AdapterTokens, AdapterTokensConfig
from ltdi.errors import DamagedFile
from ltdi.files import read_safetensors, write_json, write_safetensors
from ltdi.schedule import Schedule, ScheduleConfig

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
BANK, GENERATOR = "bank.", "generator."


@dataclass(frozen=True)
class AdapterConfig:
    """What a generator of adapters is.

    Args:
        model: the encoder, `all-MiniLM-L6-v2` or the path of a BERT or RoBERTa.
        digest: SHA-256 of its weights; not compared where empty.
        max_tokens: of a text or a pair.
        scale: lora_alpha / r.
        tasks: the stored tasks, in the bank's order.
    """

    model: str
    digest: str
    max_tokens: int
    scale: float
    tasks: tuple[str, ...]
    schedule: ScheduleConfig = ScheduleConfig()
    denoiser: AdapterTokensConfig = AdapterTokensConfig()


@dataclass(frozen=True)
class AdapterMaker:
    """A generator with its bank and the shared A `[layers, 2, rank, D]`; `ltdi.adapters.banked` makes a bundle of it."""

    config: AdapterConfig
    generator: AdapterGenerator
    bank: Bank
    lora_a: Tensor


def save_maker(folder: Path, maker: AdapterMaker) -> None:
    """Write the folder."""
    bank = {f"{BANK}{field.name}": getattr(maker.bank, field.name) for field in fields(Bank)}
    own = {f"{GENERATOR}{name}": value for name, value in maker.generator.state_dict().items()}
    write_safetensors(folder / WEIGHTS, {"lora_a": maker.lora_a} | bank | own, {"what": "generator of adapters"})
    write_json(folder / CONFIG, asdict(maker.config))


def load_maker(folder: Path) -> AdapterMaker:
    """Read the folder.

    Raises:
        DamagedFile: something is missing, superfluous or of another shape.
    """
    tensors, _ = read_safetensors(folder / WEIGHTS, "generator of adapters")
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        said |= {"schedule": ScheduleConfig(**said["schedule"]), "denoiser": AdapterTokensConfig(**said["denoiser"])}
        config = AdapterConfig(**said | {"tasks": tuple(said["tasks"])})
        lora_a = tensors.pop("lora_a")
        bank = Bank(**{field.name: tensors.pop(f"{BANK}{field.name}") for field in fields(Bank)})
        generator = AdapterGenerator(AdapterTokens(config.denoiser, Schedule(config.schedule)))
        generator.load_state_dict({name.removeprefix(GENERATOR): value for name, value in tensors.items()})
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFile(f"the generator of adapters in {folder.name!r} is not whole: {error}") from error
    return AdapterMaker(config, generator.eval().requires_grad_(False), bank, lora_a)
