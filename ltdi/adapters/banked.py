"""The generator of adapters over a bank of prepared ones, as the predictor of a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ltdi.adapters.bank import Bank, candidates, evidence, retrieval
from ltdi.adapters.base import BaseModel
from ltdi.adapters.bundle import AdapterBundle
from ltdi.adapters.closed_form import HeadConfig
from ltdi.adapters.generator import CANDIDATES, AdapterGenerator
from ltdi.adapters.maker import AdapterMaker
from ltdi.adapters.parts import AdapterBundleConfig, AdapterParts, BaseConfig
from ltdi.adapters.predictor import Evidence, Prediction, Predictor, PredictorConfig, Space
from ltdi.adapters.target import LoraTarget
from ltdi.bodies.adapted import POOLER, load_weights
from ltdi.bodies.sentence import model_folder
from ltdi.denoisers.adapter_tokens import AdapterCondition, AdapterTokens, AdapterTokensConfig
from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule, ScheduleConfig
from ltdi.support import Limits

LIMITS = Limits(32, 64, 256, 0)  # four to ten passes over a text, of a few milliseconds of a core for each twenty tokens
SIZES = 6
READ = 128  # tokens of an item; the stored adapters were fitted on items cut at 40
KEPT = ("spread", "trajectories", "frozen", "own", "owner", "pairs", "topics", "centre", "names", "named")  # of a bank; start and basis are the bundle's parts


class Banked(Predictor):
    """Weighs the stored tasks that look most like the support, through the chain of Eq. 1, and brings the head.

    The bundle's mean adapter is the bank's default, its last stored task, so that coefficients are counted from there.

    Args:
        sizes: stored tasks T, segments m of their trajectories, rows R of their classifiers, hidden units of the denoiser,
            size of pooled features, names of classes Q.
    """

    def __init__(self, space: Space, sizes: tuple[int, ...]) -> None:
        super().__init__(space, sizes)
        if len(sizes) != SIZES:
            raise InvalidConfig(f"the bank has {len(sizes)} sizes, not {SIZES}: it is of an earlier version; export it again", field="predictor")
        tasks, segments, rows, hidden, pooled, names = sizes
        schedule = Schedule(ScheduleConfig(segments=segments))
        self.generator = AdapterGenerator(AdapterTokens(AdapterTokensConfig(hidden=hidden), schedule))
        self.register_buffer("spread", torch.ones(space.modules))
        self.register_buffer("trajectories", torch.zeros(tasks, segments + 1, space.modules, space.directions))
        self.register_buffer("frozen", torch.zeros(rows, pooled))
        self.register_buffer("own", torch.zeros(rows, space.feature_size))
        self.register_buffer("owner", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("pairs", torch.zeros(tasks))
        self.register_buffer("topics", torch.zeros(tasks, pooled))
        self.register_buffer("centre", torch.zeros(pooled))
        self.register_buffer("names", torch.zeros(names, pooled))
        self.register_buffer("named", torch.zeros(names, dtype=torch.long))

    @property
    def bank(self) -> Bank:
        """What the generator reads of a bank."""
        nothing = torch.zeros(0)
        return Bank(nothing, nothing, **{name: getattr(self, name) for name in KEPT})

    def coefficients(self, x: Tensor) -> Tensor:
        """Of standardised coordinates `[W, K]`, counted from the default adapter."""
        return (x - self.trajectories[-1, 0]) * self.spread[:, None]

    def forward(self, seen_of: Evidence) -> Prediction:
        """x_0 of the chain; notes are the candidates `[C]` and what each counts `[C]`."""
        bank, index, ways = self.bank, seen_of.class_index[seen_of.watched], seen_of.ways
        known = retrieval(bank, seen_of.pooled(), index, ways, seen_of.pairs, seen_of.names())
        allowed = torch.ones(len(self.pairs))
        if seen_of.before is not None:  # a fold weighs anew, among the candidates of the whole support
            allowed = torch.zeros(len(self.pairs)).scatter(0, seen_of.before.notes[0], 1.0)
        chosen = candidates(bank, known.score, allowed, CANDIDATES)
        seen = torch.stack([seen_of.look(self.coefficients(self.trajectories[task, 0])) for task in chosen])
        told = evidence(bank, chosen, seen, known, index, ways)[None]
        condition = AdapterCondition(told, self.trajectories[chosen][None], torch.ones(1, len(chosen)))
        dice = torch.Generator().manual_seed(seen_of.seed)
        noise = torch.randn(1, *self.trajectories.shape[2:], generator=dice)
        x, weights = self.generator.chain(noise, condition)
        return Prediction(self.coefficients(x[0]), (chosen, weights[0]))

    def head(self, features: Tensor, class_index: Tensor, ways: int, prediction: Prediction) -> Tensor:
        """The generator's own classifier `[N, D + 1]`."""
        return self.generator.classifier(features, class_index, ways, self.bank, *prediction.notes)


def banked_bundle(maker: AdapterMaker, name: str, base_model_name_or_path: str, base: BaseModel | None = None) -> AdapterBundle:
    """The bundle of a trained generator; its baseline is the bank's default adapter with a closed form's head.

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
    base = base or BaseModel(config.model, READ)
    rank = maker.lora_a.shape[2]
    sizes = (len(bank.pairs), config.schedule.segments, len(bank.owner), config.denoiser.hidden, bank.frozen.shape[1], len(bank.named))
    made = AdapterBundleConfig(
        name=name, body=BaseConfig(config.model, base.max_tokens), target=base.target,
        base_model_name_or_path=base_model_name_or_path, r=rank, lora_alpha=config.scale * rank, baseline="mean",
        head=HeadConfig(strength=1.0), baseline_head=HeadConfig(strength=1.0), limits=LIMITS,
        predictor=PredictorConfig("bank", sizes), directions=bank.shape[1],
    )  # fmt: skip
    predictor = Banked(made.space, sizes)
    predictor.generator.load_state_dict(maker.generator.state_dict())
    for part in KEPT:
        setattr(predictor, part, getattr(bank, part).clone())
    return AdapterBundle(made, base, banked_parts(made.target, maker.lora_a, bank, _saved(base)), predictor)


def _saved(base: BaseModel) -> dict[str, Tensor]:
    """RoBERTa's `classifier.dense` as the stored adapters were fitted on; nothing of BERT, which brings its pooler."""
    if not base.target.saved:
        return {}
    folder = model_folder(base.model_name)
    pooler = dict(zip(("weight", "bias"), (load_weights(folder)[1][name] for name in POOLER), strict=True))
    return {tensor.name: pooler[tensor.name.rpartition(".")[2]] for tensor in base.target.saved}


def banked_parts(target: LoraTarget, lora_a: Tensor, bank: Bank, saved: Mapping[str, Tensor]) -> AdapterParts:
    """The tensors of a bundle over a bank: the default adapter is the mean, the bank's basis the directions.

    Args:
        target: its modules in the bank's order: query and value, layer by layer.
        lora_a: `[layers, 2, rank, D]`, shared by the bank's adapters.
        saved: tensors that every adapter holds whole.
    """
    paths = [module.path for module in target.modules]
    mean = bank.adapters(torch.tensor([len(bank.pairs) - 1]))[0].flatten(0, 1)
    basis = bank.basis.unflatten(-1, mean.shape[1:])
    parts = ({path: part[i].contiguous() for i, path in enumerate(paths)} for part in (lora_a.flatten(0, 1), mean, basis))
    return AdapterParts(*parts, dict(saved))
