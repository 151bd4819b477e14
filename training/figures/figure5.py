"""Figure 5: training time, and steps of the chain, against the error of generated heads; vanilla and trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.record import HOLDS, NOT_HERE, Claim, counted, difference, interval, sign, text
from training.figures.setting import Setting

TITLE = "training time, and diffusion steps, against mean squared error"
PAPER = (
    "As training goes on, trajectory diffusion is further and further ahead of vanilla; for the same error it does with fewer "
    "steps of the chain."
)
KINDS = {"Lv-Di": 1, "Lt-Di": 3}
STEPS = (5, 10, 20, 50, 100)


def measure(setting: Setting) -> dict[str, Any]:
    """Error by batches trained at T = 20, and by T at the end of training."""
    by_steps: dict[str, Any] = {}
    for steps in setting.some(STEPS):
        models = {name: [setting.model(setting.lab(s), m, steps) for s in setting.seeds] for name, m in KINDS.items()}
        by_steps[str(steps)] = _row({name: [model.curve[-1] for model in found] for name, found in models.items()})
    own = {name: [setting.model(setting.lab(s), m).curve for s in setting.seeds] for name, m in KINDS.items()}
    by_time = [_row({name: [curve[i] for curve in curves] for name, curves in own.items()}) for i in range(len(own["Lv-Di"][0]))]
    return {"by_time": by_time, "by_steps": by_steps}


def _row(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """One point of both curves, from a snapshot for each seed."""
    row: dict[str, Any] = {"batch": found["Lv-Di"][0]["batch"]}
    for name, snapshots in found.items():
        row[name] = {key: interval([one[key] for one in snapshots]) for key in ("error", "accuracy", "seconds")}
    row["error_difference"] = difference(row["Lt-Di"]["error"], row["Lv-Di"]["error"])
    return row


def draw(values: dict[str, Any], path: Path) -> None:
    """Time on the left, steps on the right."""
    figure, (left, right) = plots.panels(2)
    for name, colour in zip(KINDS, (plots.VANILLA, plots.TRAJECTORY), strict=True):
        rows = values["by_time"]
        plots.curve(left, [row[name]["seconds"]["mean"] for row in rows], [row[name]["error"] for row in rows], color=colour, label=name)
        rows = values["by_steps"]
        plots.curve(right, [int(t) for t in rows], [row[name]["error"] for row in rows.values()], color=colour, label=name)
    left.set_xscale("log")
    left.set_xlabel("training, seconds of one core")
    right.set_xscale("log")
    right.set_xticks([int(t) for t in values["by_steps"]], list(values["by_steps"]))
    right.minorticks_off()
    right.set_xlabel("steps of the chain, T")
    left.set_ylabel("mean squared error, 1 is the mean head's")
    left.legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| batches | Lv-Di | Lt-Di | Lt-Di minus Lv-Di |", "|---|---|---|---|"]
    lines += [_line(str(row["batch"]), row) for row in values["by_time"]]
    lines += ["", "| T | Lv-Di | Lt-Di | Lt-Di minus Lv-Di |", "|---|---|---|---|"]
    return lines + [_line(steps, row) for steps, row in values["by_steps"].items()]


def _line(name: str, row: dict[str, Any]) -> str:
    return f"| {name} | {text(row['Lv-Di']['error'])} | {text(row['Lt-Di']['error'])} | {text(row['error_difference'], signed=True)} |"


def claims(values: dict[str, Any]) -> list[Claim]:
    """Two of section 3.2.2."""
    time, steps = values["by_time"], values["by_steps"]
    return [
        _further(time),
        _claim("trajectory diffusion has the lower error at the same number of steps", {f"at T = {t}": r for t, r in steps.items()}),
        _fewer(steps),
    ]


def _fewer(steps: dict[str, Any]) -> Claim:
    """Whether trajectory diffusion with fewer steps is as good as vanilla where that is best; untold where that is at the fewest."""
    best = min(steps, key=lambda t: steps[t]["Lv-Di"]["error"]["mean"])
    wanted = steps[best]["Lv-Di"]["error"]
    fewer = [t for t in steps if int(t) < int(best)]
    reached = [t for t in fewer if sign(difference(steps[t]["Lt-Di"]["error"], wanted)) <= 0]
    own = text(steps[best]["Lt-Di"]["error"])
    why = f"Lv-Di is best at T = {best}, {text(wanted)}, where Lt-Di has {own}; with fewer steps Lt-Di is as good at T = {', '.join(reached) or 'none'}"
    why += "" if fewer else ", as none were measured: more steps make neither better"
    return Claim("3.2.2", "trajectory diffusion reaches the same error in fewer steps", HOLDS if reached else NOT_HERE, why)


def _further(rows: list[dict[str, Any]]) -> Claim:
    """Whether the lead grows: at the end against a quarter of the way, and against half of it."""
    last = rows[-1]["error_difference"]
    grown = {row["batch"]: difference(last, row["error_difference"]) for row in rows[-3:-1]}
    ahead = [row["batch"] for row in rows if sign(row["error_difference"]) < 0]
    verdict = counted([-sign(found) for found in grown.values()]) if sign(last) < 0 else NOT_HERE
    moved = "; ".join(f"since {batch} batches {text(found, signed=True)}" for batch, found in grown.items())
    why = f"difference at the end {text(last, signed=True)}; {moved}; ahead, intervals apart, after {', '.join(map(str, ahead)) or 'no'} batches"
    return Claim("3.2.2", "as training goes on, trajectory diffusion gets further ahead", verdict, why)


def _claim(says: str, rows: dict[str, Any]) -> Claim:
    signs = {name: sign(row["error_difference"]) for name, row in rows.items()}
    ahead = [name for name, value in signs.items() if value < 0]
    behind = [name for name, value in signs.items() if value > 0]
    verdict = counted([-value for value in signs.values()])
    why = f"lower error {', '.join(ahead) or 'nowhere'}; higher {', '.join(behind) or 'nowhere'}, intervals apart"
    return Claim("3.2.2", says, verdict, why)
