"""What plots share: a figure with panels, curves with intervals, one way to save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.figures.record import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VANILLA, TRAJECTORY, OTHER, FOURTH = "#b2182b", "#2166ac", "#1b7837", "#7b3294"
GREY = "#777777"


def panels(columns: int, width: float = 4.6, height: float = 3.8, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, from left to right and down."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, list(axes.flat)


def curve(axis: Axes, x: Sequence[float], found: Sequence[Interval], **style: Any) -> None:
    """Means with 95 % intervals as bars."""
    halves = [entry["half"] or 0.0 for entry in found]
    axis.errorbar(x, [entry["mean"] for entry in found], yerr=halves, capsize=3, marker="o", ms=4, lw=1.4, **style)


def logarithmic(axis: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic x axis with these ticks alone, as plain numbers."""
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])


def save(figure: Figure, path: Path) -> None:
    """Write it as PNG."""
    from matplotlib import pyplot

    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
