"""A few episodes to look at: examples, and the queries on which the generated head and its baseline disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ltdi import baselines
from ltdi.generator import ResidualGenerator
from training.data.dataset import ClassImages
from training.episodes import Episodes, Protocol, draw
from training.evaluate import generated
from training.statistics import statistics_of_episodes

MOST = 10  # disagreements of an episode that are drawn
MARKS = {True: "right", False: "wrong"}


@dataclass(frozen=True)
class Seen:
    """One episode as it is drawn, and what both heads say of its queries.

    Args:
        classes: `[N]`, which of the data set's.
        support: `[N, K]`, `queries` `[N Q]`: places of images among those of all classes.
        target, generated, baseline: `[N Q]`, rows of `classes`.
    """

    classes: Tensor
    support: Tensor
    queries: Tensor
    target: Tensor
    generated: Tensor
    baseline: Tensor

    @property
    def apart(self) -> list[int]:
        """The queries on which the heads disagree."""
        return (self.generated != self.baseline).nonzero().squeeze(1).tolist()

    def counts(self) -> dict[str, int]:
        """Of these, how many each head has right, and how many neither."""
        rows = self.apart
        own, base = (int((head[rows] == self.target[rows]).sum()) for head in (self.generated, self.baseline))
        return {"disagree": len(rows), "generated right": own, "baseline right": base, "neither": len(rows) - own - base}


@torch.inference_mode()
def look(generator: ResidualGenerator, bank: Tensor, protocol: Protocol, count: int, groups: Tensor | None = None) -> list[Seen]:
    """The first episodes of a protocol, in the order in which they are measured.

    Args:
        bank: as for `training.episodes.draw`.
    """
    places = torch.arange(bank.shape[0] * bank.shape[1]).double().view(*bank.shape[:2], 1, 1)  # drawn as features are
    drawn, episodes = next(draw(places, protocol, groups=groups)), next(draw(bank, protocol, groups=groups))
    answers = generated(generator)(episodes).argmax(-1)
    base = _baseline(generator, episodes).argmax(-1)
    support, queries = drawn.support.squeeze(-1).long(), drawn.queries.squeeze(-1).long()
    return [
        Seen(support[i, :, 0] // bank.shape[1], support[i], queries[i], episodes.target, answers[i], base[i]) for i in range(min(count, len(answers)))
    ]


def _baseline(generator: ResidualGenerator, episodes: Episodes) -> Tensor:
    statistics = statistics_of_episodes(episodes.support, episodes.views)
    return baselines.logits(generator.describe(statistics).base, episodes.queries)


def report(seen: list[Seen], names: list[str]) -> str:
    """What stands beside the picture, as Markdown: an episode a row."""
    rows = ["| episode | classes | disagree | generated right | baseline right | neither |", "| --- | --- | --- | --- | --- | --- |"]
    for place, one in enumerate(seen):
        counts = one.counts().values()
        rows.append(f"| {place} | {', '.join(names[row] for row in one.classes.tolist())} | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


def draw_picture(seen: list[Seen], images: ClassImages, path: Path) -> None:
    """Two rows an episode: one example of each class, then queries with what both heads say of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pixels, ways = images.pixels, len(seen[0].classes)
    figure, panels = pyplot.subplots(2 * len(seen), MOST, figsize=(1.45 * MOST, 3.9 * len(seen)), squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for place, one in enumerate(seen):
        names = [images.names[row].rsplit("/", 1)[-1][:18] for row in one.classes.tolist()]
        for row in range(min(ways, MOST)):
            _show(panels[2 * place][row], pixels[one.support[row, 0]], names[row])
        for panel, query in zip(panels[2 * place + 1], one.apart, strict=False):
            target = one.target[query]
            said = [
                f"{who}: {names[answers[query]]} ({MARKS[bool(answers[query] == target)]})"
                for who, answers in (("ours", one.generated), ("base", one.baseline))
            ]
            _show(panel, pixels[one.queries[query]], "\n".join([names[target], *said]))
    figure.suptitle("first row: an example of each class; second: queries on which generated head and baseline disagree", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _show(panel, image: Tensor, title: str) -> None:
    colour = image.shape[0] == 3
    panel.imshow(image.permute(1, 2, 0).numpy() if colour else 255 - image[0].numpy(), cmap=None if colour else "gray")
    panel.set_title(title, fontsize=6)
