"""Weight preparation (Lt-Di, Algorithm 1): fits heads on frozen features and keeps their paths.

All tasks of a shard are fitted as one tensor. The fit runs in a frame of its own, features centred and
scaled to unit mean square length, so that one learning rate serves every body; what is stored fits the
body's features as they are. The step is plain gradient descent, at the gradient that `sam_gradient` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from ltdi.codec import Layout
from ltdi.errors import InvalidConfig
from ltdi.files import digest, read_safetensors, write_safetensors
from training.augment import random_affine, random_photo
from training.data.dataset import ClassImages
from training.progress import RunLog
from training.sam import sam_gradient
from training.trajectories import Trajectories, TrajectoryBatch, TrajectoryWriter

KINDS = ("many_shot", "few_shot")
WAYPOINT_RULES = ("path", "steps")
EMBED_BATCH = 500


@dataclass(frozen=True)
class PrepareConfig:
    """Which tasks, and how their heads are fitted. Lengths are in the frame's units.

    Args:
        tasks: how many trajectories.
        ways, shots: N classes with K examples each are what a generator will see of a task.
        kind: `many_shot` fits one layer to every drawing of the classes, from the class means of the
            examples; `few_shot` fits two layers to the examples and their augmented copies, from one
            Gaussian initialisation that all tasks of a store share.
        hidden: H, units between the two layers of `few_shot`.
        steps: of gradient descent; each is recorded.
        lr: learning rate.
        sam_radius: rho.
        weight_decay: pulls `few_shot` weights towards their start, `many_shot` heads towards the class
            means of all drawings.
        noise: standard deviation, over all coordinates, of what is added to features at each step.
        views: of each drawing: itself and `views - 1` affinely changed copies, embedded beforehand.
        augment: strength of those changes, 1 as for `random_affine`.
        first_gain, last_gain: of `few_shot`: the initialisation's standard deviation in each layer, in units
            of He's. A small first layer leaves the choice of its directions to the fit.
        initial_noise: of `few_shot`: how far the start of each task is from the shared one, in units of
            the standard deviation of the initialisation.
        waypoints: m; m + 1 are kept.
        waypoint_rule: `path` for equal distance along the path, `steps` for equal numbers of steps.
        shard_tasks: tasks that are fitted and written together.
        seed: of tasks, views, noise and the initialisation.
    """

    tasks: int = 2000
    ways: int = 5
    shots: int = 1
    kind: str = "many_shot"
    hidden: int = 32
    steps: int = 60
    lr: float = 2.0
    sam_radius: float = 0.5
    weight_decay: float = 0.05
    noise: float = 0.3
    views: int = 4
    augment: float = 1.0
    first_gain: float = 0.1
    last_gain: float = 3.0
    initial_noise: float = 0.02
    waypoints: int = 3
    waypoint_rule: str = "path"
    shard_tasks: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidConfig(f"kind {self.kind!r} is unknown; known: {', '.join(KINDS)}", field="kind")
        if self.waypoint_rule not in WAYPOINT_RULES:
            known = ", ".join(WAYPOINT_RULES)
            raise InvalidConfig(f"waypoint_rule {self.waypoint_rule!r} is unknown; known: {known}")
        if not 1 <= self.waypoints <= self.steps:
            raise InvalidConfig(f"waypoints is {self.waypoints}; it must lie in 1..steps ({self.steps})")
        for name in ("tasks", "shots", "hidden", "views", "shard_tasks"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be at least 1", field=name)
        if self.ways < 2:
            raise InvalidConfig(f"ways is {self.ways}; a head separates at least 2 classes", field="ways")


@dataclass(frozen=True)
class Frame:
    """The affine change of features in which heads are fitted: `(features - centre) / scale`.

    Args:
        centre: `[D]`.
        scale: root of the mean square length of centred features.
    """

    centre: Tensor
    scale: float

    @classmethod
    def of(cls, features: Tensor) -> Frame:
        """The frame of features `[..., D]`."""
        rows = features.flatten(0, -2)
        variance, centre = torch.var_mean(rows, dim=0, correction=0)
        return cls(centre, float(variance.sum().sqrt().clamp_min(1e-12)))

    def features(self, raw: Tensor) -> Tensor:
        """Features in the frame, `[..., D]`."""
        return (raw - self.centre) / self.scale

    def leave(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The layer `[..., O, D]`, `[..., O]` on raw features that equals this one on the frame's."""
        weight = weight / self.scale
        return weight, bias - weight @ self.centre

    def enter(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `leave`."""
        return weight * self.scale, bias + weight @ self.centre


@dataclass(frozen=True)
class FitTask:
    """What the fits of a shard start from and look at, in the frame.

    Args:
        start: `[B, ...]`, theta_m.
        anchor: of the same shape, where weight decay pulls.
        items: `[B, N, M, V, D]`, M drawings of each class in V views.
        logits: weights `[B, ...]` and features `[B, Q, D]` to `[B, Q, N]`.
        generators: one for each task.
    """

    start: Tensor
    anchor: Tensor
    items: Tensor
    logits: Callable[[Tensor, Tensor], Tensor]
    generators: list[torch.Generator]


def prepare(
    config: PrepareConfig, body: nn.Module, data: ClassImages, out: Path, features: Path | None = None
) -> Trajectories:
    """Fit the heads of `config.tasks` tasks and store their trajectories at `out`, shard by shard.

    Goes on where an earlier run was killed; the result is the same to the bit. Every task has its own source
    of chance, made of the seed and its number.

    Args:
        body: frozen; maps `[M, 1, H, W]` to `[M, D]`.
        data: the classes that tasks are made of.
        features: a file that keeps the embedded views for other stores of the same body, data and views.

    Raises:
        InvalidConfig: `out` holds trajectories of other settings, data or body, or a task needs more
            classes or drawings than there are.
    """
    _check_fits(config, data)
    settings = {key: value for key, value in asdict(config).items() if key != "tasks"}
    settings |= {"data": data_digest(data), "body": body_digest(body)}
    writer = TrajectoryWriter(out, settings, tasks=config.tasks, shard_tasks=config.shard_tasks)
    total = -(-config.tasks // config.shard_tasks)
    if writer.shards < total:
        bank = embed_views(body, data, config, features)
        frame = Frame.of(bank[:, :, 0])
        log = RunLog(out / "prepare.log.jsonl", "prepare", total=total, first=writer.shards, every=1)
        for number in range(writer.shards, total):
            batch, summary = prepare_shard(config, bank, frame, writer.expected(number))
            writer.add(batch)
            log.step(number + 1, **summary)
        log.close()
    return Trajectories(out)


def prepare_shard(
    config: PrepareConfig, bank: Tensor, frame: Frame, numbers: range
) -> tuple[TrajectoryBatch, dict[str, float]]:
    """The trajectories of tasks `numbers`, and accuracies on what they were fitted to at both ends.

    Args:
        bank: `[classes, drawings, V, D]`, raw features.
    """
    generators = [task_generator(config.seed, number) for number in numbers]
    classes, drawings = draw_tasks(config, bank, generators)
    support = bank[classes.unsqueeze(-1), drawings[:, :, : config.shots], 0]
    task = _many_shot(bank, frame, classes, support, generators)
    if config.kind == "few_shot":
        shown = bank[classes.unsqueeze(-1), drawings[:, :, : config.shots]]
        task = _few_shot(config, shown, frame, generators)
    kept = select_waypoints(fit(config, task), config.waypoints, config.waypoint_rule)
    summary = {"accuracy": _accuracy(task, kept[:, 0]), "start_accuracy": _accuracy(task, kept[:, -1])}
    base = baselines.class_means(support) if config.kind == "many_shot" else None
    return TrajectoryBatch(_leave(config, frame, kept), support, classes, base), summary


def fit(config: PrepareConfig, task: FitTask) -> Tensor:
    """Algorithm 1 on all tasks at once: the weights before the first and after each step, `[steps + 1, B, ...]`."""
    ways, views = task.items.shape[1], task.items.shape[3]
    shown = torch.stack(
        [torch.randint(views, (config.steps, *task.items.shape[1:3]), generator=g) for g in task.generators], dim=1
    )
    target = torch.arange(ways).repeat_interleave(task.items.shape[2]).expand(len(task.items), -1)
    path = torch.empty(config.steps + 1, *task.start.shape)
    path[0] = task.start
    for step in range(config.steps):
        features = _augmented(task, shown[step], config.noise)

        def loss(weights: Tensor, features: Tensor = features) -> Tensor:
            answers = task.logits(weights, features).transpose(1, 2)
            decay = (weights - task.anchor).square().flatten(1).sum(1)
            return F.cross_entropy(answers, target, reduction="none").mean(1) + config.weight_decay / 2 * decay

        path[step + 1] = path[step] - config.lr * sam_gradient(loss, path[step], config.sam_radius)
    return path


def select_waypoints(path: Tensor, waypoints: int, rule: str) -> Tensor:
    """The recorded weights nearest to m + 1 equal shares of the way, theta_0 (the last) first.

    Args:
        path: `[steps + 1, B, ...]`.
        rule: the way is measured along the path (`path`) or in steps (`steps`).

    Returns:
        `[B, m + 1, ...]`.
    """
    steps, tasks = len(path) - 1, path.shape[1]
    shares = torch.linspace(1, 0, waypoints + 1)
    if rule == "path":
        moved = (path[1:] - path[:-1]).flatten(2).norm(dim=2).cumsum(0)
        done = F.pad(moved / moved[-1].clamp_min(1e-30), (0, 0, 1, 0)).T
    else:
        done = torch.linspace(0, 1, steps + 1).expand(tasks, -1)
    nearest = (done.unsqueeze(1) - shares.unsqueeze(1)).abs().argmin(2)
    nearest[:, 0], nearest[:, -1] = steps, 0
    return path[nearest, torch.arange(tasks).unsqueeze(1)]


def draw_tasks(config: PrepareConfig, bank: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Classes `[B, N]` and an order of the drawings of each, `[B, N, drawings]`; the first K are the support."""
    classes = torch.stack([torch.randperm(len(bank), generator=g)[: config.ways] for g in generators])
    order = torch.stack([torch.rand(config.ways, bank.shape[1], generator=g).argsort(1) for g in generators])
    return classes, order


def task_generator(seed: int, number: int) -> torch.Generator:
    """The source of chance of one task."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def shared_start(config: PrepareConfig, layout: Layout) -> tuple[Tensor, Tensor]:
    """The initialisation of all tasks of a store and its standard deviation for each weight, both `[P]`.

    He's initialisation on features of unit length, the last layer's by its width, times the gains of
    `config`; biases start at 0.
    """
    deviations = 2**0.5 * config.first_gain, layout.sizes[1] ** -0.5 * config.last_gain
    generator = torch.Generator().manual_seed(config.seed)
    layers = [
        (torch.full_like(weight, deviation), torch.zeros_like(bias))
        for (weight, bias), deviation in zip(layout.split(torch.zeros(layout.length)), deviations, strict=True)
    ]
    deviation = layout.join(layers)
    return deviation * torch.randn(layout.length, generator=generator), deviation


def embed_views(body: nn.Module, data: ClassImages, config: PrepareConfig, cache: Path | None = None) -> Tensor:
    """Features of each image and its augmented copies, `[classes, images, V, D]`; view 0 is the image.

    Args:
        cache: read where it holds just these, written where it is absent.
    """
    key = "" if cache is None else digest(data_digest(data).encode(), body_digest(body).encode(), repr(_view_settings(config)).encode())
    if cache is not None and cache.exists():
        tensors, metadata = read_safetensors(cache, "file of embedded views")
        if metadata.get("key") == key:
            return tensors["features"]
    views = [_embed(body, data, config, view) for view in range(config.views)]
    bank = torch.stack(views, dim=1).unflatten(0, data.images.shape[:2])
    if cache is not None:
        write_safetensors(cache, {"features": bank}, {"key": key})
    return bank


def data_digest(data: ClassImages) -> str:
    """SHA-256 over names and pixels."""
    return digest("\n".join(data.names).encode(), data.images.cpu().contiguous().numpy().tobytes())


def body_digest(body: nn.Module) -> str:
    """SHA-256 over names and values of the body's parameters and buffers."""
    parts = []
    for name, tensor in body.state_dict().items():
        parts += [name.encode(), tensor.detach().cpu().contiguous().numpy().tobytes()]
    return digest(*parts)


def _view_settings(config: PrepareConfig) -> tuple[int, float, int]:
    return config.views, config.augment, config.seed


@torch.no_grad()
def _embed(body: nn.Module, data: ClassImages, config: PrepareConfig, view: int) -> Tensor:
    """One view of every image, `[classes * images, D]`."""
    generator, features = torch.Generator().manual_seed(config.seed * 1_000_003 + view), []
    change = random_affine if data.images.ndim == 4 else random_photo
    for images in data.pixels.split(EMBED_BATCH):
        pixels = images.float() / 255
        features.append(body(change(pixels, generator, config.augment) if view else pixels))
    return torch.cat(features)


def _many_shot(
    bank: Tensor, frame: Frame, classes: Tensor, support: Tensor, generators: list[torch.Generator]
) -> FitTask:
    """From the class means of the support towards all drawings.

    A row added to every class changes no answer, so the anchor is shifted to have the mean row of the start.
    """
    items = bank[classes]
    start = baselines.class_means(support)
    anchor = baselines.class_means(items[:, :, :, 0])
    anchor = anchor + (start - anchor).mean(1, keepdim=True)
    start, anchor = (_pack(*frame.enter(head[..., :-1], head[..., -1])) for head in (start, anchor))
    return FitTask(start, anchor, frame.features(items), baselines.logits, generators)


def _few_shot(config: PrepareConfig, shown: Tensor, frame: Frame, generators: list[torch.Generator]) -> FitTask:
    """From the shared start, and a little noise, towards the support `[B, N, K, V, D]` in all its views."""
    layout = Layout((shown.shape[-1], config.hidden, config.ways))
    shared, deviation = shared_start(config, layout)
    noise = torch.stack([torch.randn(layout.length, generator=g) for g in generators])
    start = shared + config.initial_noise * deviation * noise
    items = frame.features(shown).flatten(2, 3).unsqueeze(3)
    return FitTask(start, start, items, layout.logits, generators)


def _augmented(task: FitTask, shown: Tensor, noise: float) -> Tensor:
    """One view of each item, `[B, N, M]` says which, with noise: `[B, N M, D]`."""
    size = task.items.shape[-1]
    index = shown[..., None, None].expand(*shown.shape, 1, size)
    features = task.items.gather(3, index).flatten(1, 3)
    if noise == 0:
        return features
    chance = torch.empty_like(features)
    for row, generator in zip(chance, task.generators, strict=True):
        row.normal_(generator=generator)
    return features.add_(chance, alpha=noise / size**0.5)


def _accuracy(task: FitTask, weights: Tensor) -> float:
    """On the first view of each item."""
    ways, drawings = task.items.shape[1:3]
    answers = task.logits(weights, task.items[:, :, :, 0].flatten(1, 2)).argmax(-1)
    return float((answers == torch.arange(ways).repeat_interleave(drawings)).float().mean())


def _leave(config: PrepareConfig, frame: Frame, weights: Tensor) -> Tensor:
    """Weights `[B, m + 1, ...]` for raw features."""
    if config.kind == "many_shot":
        return _pack(*frame.leave(weights[..., :-1], weights[..., -1]))
    layout = Layout((len(frame.centre), config.hidden, config.ways))
    first, last = layout.split(weights)
    return layout.join([frame.leave(*first), last])


def _pack(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight, bias.unsqueeze(-1)], dim=-1)


def _check_fits(config: PrepareConfig, data: ClassImages) -> None:
    if config.ways > len(data):
        raise InvalidConfig(f"ways is {config.ways}, but the data has {len(data)} classes; lower ways", field="ways")
    if config.shots > data.images.shape[1]:
        have = data.images.shape[1]
        raise InvalidConfig(f"shots is {config.shots}, but a class has {have} images; lower shots", field="shots")
