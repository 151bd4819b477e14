"""Table 1: which part of the method is worth what, on Omniglot 5-way 1-shot."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.bodies import CONV4
from training.figures.models import ModelConfig
from training.figures.published import ABLATION, RIVALS
from training.figures.record import CONDITION, HOLDS, NOT_HERE, Claim, difference, interval, sign, text
from training.figures.rivals import CLOSED, Budget, Heads, reptile, tuned_cosine, weights_vae
from training.figures.setting import QUICK_MODEL, Setting
from training.figures.tasks import Lab, Tasks

TITLE = "which component is worth what, 5-way 1-shot"
PAPER = "learning weights, diffusion and trajectories each add, but for learning weights on Omniglot."
INNER_RATES, BETAS = (0.1, 0.5, 2.0, 10.0, 50.0, 200.0), (0.03, 0.3, 1.0, 3.0, 10.0, 30.0)
ORDER = ("REPTILE", "LLO-VAE", "Lv-Di", "Lt-Di")


def measure(setting: Setting) -> dict[str, Any]:
    """Accuracy and, where the head is of the optimum's kind, error of each method; settings chosen on validation tasks, seed 0."""
    return rows_on(setting) | {"images": setting.images, "body": CONV4}


def rows_on(setting: Setting, **of_lab: Any) -> dict[str, Any]:
    """The table of a laboratory with some of its settings changed."""
    lab = setting.lab(**of_lab)
    own = QUICK_MODEL if setting.quick else ModelConfig()
    budget = Budget(own.batches, own.tasks)
    inner_lr = _best(lab, {rate: reptile(lab, 0, budget, inner_lr=rate) for rate in INNER_RATES})
    beta = _best(lab, {weight: weights_vae(lab, 0, budget, beta=weight) for weight in BETAS})
    closed = _best(lab, {name: lambda tasks, f=f: f(tasks.support) for name, f in CLOSED.items()})
    makers: dict[str, Callable[[Lab], Heads]] = {
        "REPTILE": lambda lab: reptile(lab, lab.config.seed, budget, inner_lr=inner_lr),
        "LLO-VAE": lambda lab: weights_vae(lab, lab.config.seed, budget, beta=beta),
        "Lv-Di": lambda lab: lambda tasks: setting.model(lab, 1).generate(lab, tasks).heads,
        "Lt-Di": lambda lab: lambda tasks: setting.model(lab, 3).generate(lab, tasks).heads,
        "Meta-Baseline": lambda lab: tuned_cosine(lab, lab.config.seed, budget),
    } | {name: lambda lab, f=f: lambda tasks: f(tasks.support) for name, f in CLOSED.items()}
    made = [_of_lab(setting.lab(seed, **of_lab), makers, setting.part) for seed in setting.seeds]
    found = {name: {key: interval([one[name][key] for one in made]) for key in ("accuracy", "error")} for name in makers}
    rows = {name: row for name, row in found.items() if name not in CLOSED}
    return {
        "rows": rows, "chosen": {"inner_lr": inner_lr, "beta": beta, "closed form": closed},
        "closed": {name: found[name]["accuracy"] for name in CLOSED},
        "differences": {f"{b} minus {a}": difference(rows[b]["accuracy"], rows[a]["accuracy"]) for a, b in itertools.pairwise(ORDER)},
    }  # fmt: skip


def _best(lab: Lab, found: dict[Any, Heads]) -> Any:
    tasks = lab.measured("val")
    scores = {name: float(tasks.accuracy(heads(tasks)).mean()) for name, heads in found.items()}
    return max(scores, key=scores.__getitem__)


def _of_lab(lab: Lab, makers: Mapping[str, Callable[[Lab], Heads]], part: str) -> dict[str, dict[str, float]]:
    """Accuracy and error of each method on the tasks of one seed."""
    tasks, found = lab.measured(part), {}
    for name, make in makers.items():
        heads = make(lab)(tasks)
        found[name] = {"accuracy": float(tasks.accuracy(heads).mean()), "error": _error(lab, tasks, heads)}
    return found


def _error(lab: Lab, tasks: Tasks, heads: Any) -> float:
    return float((lab.codec.encode(heads) - lab.codec.encode(tasks.optimum)).square().mean())


def draw(values: dict[str, Any], path: Path) -> None:
    """Accuracies as points with intervals."""
    figure, (axis,) = plots.panels(1, width=7)
    rows = {name: row["accuracy"] for name, row in values["rows"].items()} | values["closed"]
    names = list(rows)
    for place, (name, found) in enumerate(rows.items()):
        colour = plots.TRAJECTORY if name in values["rows"] else plots.GREY
        axis.errorbar(found["mean"], place, xerr=found["half"] or 0, fmt="o", capsize=3, color=colour)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy, %, 5-way 1-shot")
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| | accuracy, % | error to the many-shot optimum | the paper's accuracy |", "|---|---|---|---|"]
    kind, paper = ("LLO-VAE", "Lv-Di", "Lt-Di"), ABLATION[values["images"], values["body"]]
    for name, row in values["rows"].items():
        printed = f"{paper[name]:.2f}" if name in paper else ""
        lines.append(f"| {name} | {text(row['accuracy'], 2)} | {text(row['error']) if name in kind else ''} | {printed} |")
    lines += [f"| {name} | {text(found, 2)} | | |" for name, found in values["closed"].items()]
    elsewhere = ["", *rivals()] if values["images"] == "omniglot" else []
    return [*lines, "", chosen_line(values["chosen"]), *elsewhere]


def chosen_line(chosen: dict[str, Any]) -> str:
    """What validation tasks decided."""
    edge = " (the largest tried)" if chosen["beta"] == BETAS[-1] else ""
    return (
        f"Chosen on validation tasks of seed 0: REPTILE's inner rate {chosen['inner_lr']:g}, the VAE's divergence at {chosen['beta']:g}{edge}, "
        f"closed form *{chosen['closed form']}*."
    )


def rivals() -> list[str]:
    """What is printed elsewhere of methods that were not run here."""
    lines = ["| published, 5-way 1-shot | in Lt-Di's Table 3: Omniglot, mini-ImageNet | in their own papers |", "|---|---|---|"]
    return lines + [f"| {name} | {said['lt-di']} | {said['own']} |" for name, said in RIVALS.items()]


def claims(values: dict[str, Any]) -> list[Claim]:
    """The order of Table 1, and its parts."""
    return [Claim("4.1.1", *order_claim(values, ABLATION[values["images"], values["body"]]))]


def order_claim(values: dict[str, Any], paper: dict[str, float]) -> tuple[str, str, str]:
    """The order that the paper prints, what became of it, and by how much."""
    printed = [1 if paper[b] > paper[a] else -1 for a, b in itertools.pairwise(ORDER)]
    says = ", ".join(f"{b} {'above' if way > 0 else 'below'} {a}" for (a, b), way in zip(itertools.pairwise(ORDER), printed, strict=True))
    signs = [sign(found) for found in values["differences"].values()]
    same = sum(a == b for a, b in zip(signs, printed, strict=True))
    verdict = HOLDS if same == len(printed) else (CONDITION if same and signs[-1] == printed[-1] else NOT_HERE)
    why = "; ".join(f"{name} {text(found, 2, signed=True)}" for name, found in values["differences"].items())
    return says, verdict, why
