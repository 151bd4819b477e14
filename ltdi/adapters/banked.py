"""The generator of adapters over a bank of prepared ones, as the predictor of a bundle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapter_bank import AdapterGenerator, Bank, relations
from ltdi.adapter_files import AdapterMaker
from ltdi.adapters.base import BaseModel
from ltdi.adapters.bundle import AdapterBundle
from ltdi.adapters.parts import AdapterBundleConfig, AdapterParts, BaseConfig
from ltdi.adapters.predictor import Evidence, Prediction, Predictor, PredictorConfig, Space
from ltdi.adapters.target import LoraTarget
from ltdi.denoisers.adapter_tokens import AdapterCondition, AdapterTokens, AdapterTokensConfig
from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule, ScheduleConfig


class Banked(Predictor):
    """Weighs stored tasks by how well their classifiers separate the support, through the chain of Eq. 1.

    Args:
        sizes: stored tasks T, segments m of their trajectories, rows R of their classifiers, hidden units of the denoiser.
    """

    def __init__(self, space: Space, sizes: tuple[int, ...]) -> None:
        super().__init__(space, sizes)
        tasks, segments, rows, hidden = sizes
        schedule = Schedule(ScheduleConfig(segments=segments))
        denoiser = AdapterTokens(AdapterTokensConfig(hidden=hidden), schedule, space.modules)
        self.generator = AdapterGenerator(denoiser, (0,))  # what every adapter has beside the anchor is the last direction
        self.register_buffer("spread", torch.ones(space.modules))
        self.register_buffer("trajectories", torch.zeros(tasks, segments + 1, space.modules, space.directions - 1))
        self.register_buffer("rows", torch.zeros(rows, space.feature_size))
        self.register_buffer("owner", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("pairs", torch.zeros(tasks))
        self.register_buffer("ways", torch.ones(tasks))

    @property
    def bank(self) -> Bank:
        """What the generator reads of a bank: anchor and basis are the bundle's own."""
        nothing = torch.zeros(0)
        return Bank(nothing, nothing, self.spread, self.trajectories, self.rows, self.owner, self.pairs, self.ways)

    def forward(self, evidence: Evidence) -> Prediction:
        """Coordinates of x_0 in the bundle's directions, 1 for the last; notes are the stored tasks' weights `[T]`."""
        told = relations(self.bank, evidence.features, evidence.class_index, evidence.ways, evidence.pairs)[None]
        condition = AdapterCondition(told, self.trajectories, torch.ones(1, len(self.ways)))
        dice = torch.Generator().manual_seed(evidence.seed)
        noise = torch.randn(1, *self.trajectories.shape[2:], generator=dice)
        x, weights = self.generator.coordinates(noise, condition)
        return Prediction(F.pad(x[0] * self.spread[:, None], (0, 1), value=1.0), weights[0])

    def head(self, features: Tensor, class_index: Tensor, ways: int, prediction: Prediction) -> Tensor:
        """Ridge regression lighter along the classifiers of related tasks, `[N, D + 1]`."""
        return self.generator.head(features, class_index, ways, self.bank, prediction.notes)


def banked_bundle(maker: AdapterMaker, name: str, base_model_name_or_path: str, base: BaseModel | None = None) -> AdapterBundle:
    """The bundle of a trained generator; its baseline is the anchor, the multi-task adapter, with a closed form's head.

    Args:
        base: the base model where it is not the one that the maker names.

    Raises:
        InvalidConfig: a schedule or a denoiser whose sizes a bundle does not say.
    """
    config, bank = maker.config, maker.bank
    if config.schedule != ScheduleConfig(segments=config.schedule.segments):
        raise InvalidConfig("a bundle of adapters knows the default schedule only", field="schedule")
    if config.denoiser != AdapterTokensConfig(hidden=config.denoiser.hidden):
        raise InvalidConfig("a bundle of adapters knows the default denoiser only", field="denoiser")
    base = base or BaseModel(config.model, config.max_tokens)
    rank = maker.lora_a.shape[2]
    sizes = (len(bank.ways), config.schedule.segments, len(bank.owner), config.denoiser.hidden)
    made = AdapterBundleConfig(
        name=name, body=BaseConfig(config.model, config.max_tokens), target=base.target,
        base_model_name_or_path=base_model_name_or_path, r=rank, lora_alpha=config.scale * rank, baseline="mean",
        predictor=PredictorConfig("bank", sizes), directions=bank.shape[1] + 1,
    )  # fmt: skip
    parts = banked_parts(made.target, maker.lora_a, bank, maker.generator)
    return AdapterBundle(made, base, parts, banked_predictor(made.space, bank, maker.generator))


def banked_predictor(space: Space, bank: Bank, generator: AdapterGenerator) -> Banked:
    """A predictor of a trained generator and its bank."""
    tasks, waypoints = bank.trajectories.shape[:2]
    made = Banked(space, (tasks, waypoints - 1, len(bank.owner), generator.denoiser.config.hidden))
    made.generator.denoiser.load_state_dict(generator.denoiser.state_dict())
    made.generator.head.load_state_dict(generator.head.state_dict())
    for name, value in (("spread", bank.spread), ("trajectories", bank.trajectories), ("rows", bank.directions),
                        ("owner", bank.owner), ("pairs", bank.pairs), ("ways", bank.ways)):  # fmt: skip
        setattr(made, name, value.clone())
    return made


def banked_parts(target: LoraTarget, lora_a: Tensor, bank: Bank, generator: AdapterGenerator) -> AdapterParts:
    """The tensors of a bundle of a trained generator; directions are the bank's basis, and last what it learned beside it.

    Args:
        target: its modules in the bank's order: query and value, layer by layer.
        lora_a: `[layers, 2, rank, D]`, shared by the bank's adapters.
    """
    paths = [module.path for module in target.modules]
    mean, shift = bank.anchor.flatten(0, 1), generator.shift.detach().flatten(0, 1)
    basis = torch.cat([bank.basis.unflatten(-1, mean.shape[1:]), shift[:, None]], 1)
    parts = ({path: part[i].contiguous() for i, path in enumerate(paths)} for part in (lora_a.flatten(0, 1), mean, basis))
    return AdapterParts(*parts)
