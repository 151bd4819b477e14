"""The table of tuning by gradient descent: how good in the end, how good after a time, how long until it is as good as what is generated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.adapters.tuned import STEPS, TUNED, chosen_rates, run_file
from training.adapters.tuning import MARKS, METHODS

Curve = Sequence[Mapping]  # points with `core_seconds` and `accuracy`, by time
TARGET = "generated"


def read_runs(out: Path, rows: str, rates: Mapping[str, float]) -> dict[str, dict[str, list[dict]]]:
    """Task -> method -> its runs, draw by draw; only draws that every method is done with at its rate and number of steps."""
    found: dict[str, dict[str, list[dict]]] = {}
    for task in TUNED:
        own = {method: _runs(out, task, method, rows, rates[method]) for method in METHODS}
        seeds = sorted(set.intersection(*(set(runs) for runs in own.values())))
        if seeds:
            found[task] = {method: [runs[seed] for seed in seeds] for method, runs in own.items()}
    return found


def _runs(out: Path, task: str, method: str, rows: str, rate: float) -> dict[int, dict]:
    files = (out / "tuning").glob(run_file(out, task, method, rows, 0).name.replace("0.json", "*.json"))
    said = [_read(path) for path in files]
    return {run["config"]["seed"]: run for run in said if (run["config"]["rate"], run["config"]["steps"]) == (rate, STEPS[rows])}


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_targets(path: Path, title: str = TARGET) -> dict[str, float]:
    """Task -> accuracy of what is generated, of the table of adapters; none where that is not there."""
    if not path.is_file():
        return {}
    return {task: value for task, value in _read(path)["accuracy"].get(title, {}).items() if task != "mean"}


def reached(curve: Curve, accuracy: float) -> float | None:
    """Core seconds at the first point that is at least as accurate; None where no point is."""
    return next((point["core_seconds"] for point in curve if point["accuracy"] >= accuracy), None)


def after(curve: Curve, seconds: float) -> float:
    """Accuracy at the first point that is not before a time, in favour of what is tuned; the last one where all are before."""
    return next((point["accuracy"] for point in curve if point["core_seconds"] >= seconds), curve[-1]["accuracy"])


def make_tuning_table(out: Path, rates: Path, targets: Mapping[str, float]) -> dict:
    """By rows and method: each task's accuracy at the end and after `MARKS`, core seconds, and when the target was reached."""
    table: dict = {"rates": {}, "steps": STEPS, "target": TARGET, "targets": dict(targets)}
    said = _read(rates)
    for rows in [rows for rows in STEPS if rows in said]:
        own_rates = chosen_rates(rates, rows)
        runs = read_runs(out, rows, own_rates)
        if runs:
            table["rates"][rows] = own_rates
            table[rows] = {method: {task: _row(own[method], targets.get(task)) for task, own in runs.items()} for method in METHODS}
            for own in table[rows].values():
                own["mean"] = _over_tasks(list(own.values()))
    return table


def _row(runs: Sequence[dict], target: float | None) -> dict:
    curves = [run["curve"] for run in runs]
    row = {
        "accuracy": _mean([curve[-1]["accuracy"] for curve in curves]),
        "draws": [curve[-1]["accuracy"] for curve in curves],
        "core_seconds": _mean([curve[-1]["core_seconds"] for curve in curves]),
        "after": {f"{mark:g}": _mean([after(curve, mark) for curve in curves]) for mark in MARKS},
        "curves": [[[point["step"], point["core_seconds"], point["accuracy"]] for point in curve] for curve in curves],
    }
    return row if target is None else row | {"reached": [reached(curve, target) for curve in curves]}


def _over_tasks(rows: Sequence[dict]) -> dict:
    times = [seconds for row in rows for seconds in row.get("reached", [])]
    beside = [row["accuracy"] for row in rows if "reached" in row]
    hits = [seconds for seconds in times if seconds is not None]
    return {
        "accuracy": _mean([row["accuracy"] for row in rows]),
        "accuracy_beside_target": _mean(beside) if beside else None,
        "core_seconds": _mean([row["core_seconds"] for row in rows]),
        "after": {mark: _mean([row["after"][mark] for row in rows]) for mark in rows[0]["after"]},
        "reached": {"runs": len(hits), "of": len(times), "core_seconds": _mean(hits) if hits else None},
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2)


def tuning_lines(table: dict) -> list[str]:
    """For a page: a table of accuracies in the end, and one of times, for each number of rows."""
    out: list[str] = []
    for rows in STEPS:
        if rows in table:
            out += ["", *_accuracies(table, rows), "", *_times(table, rows)]
    return out[1:]


def _accuracies(table: dict, rows: str) -> list[str]:
    own, targets = table[rows], table["targets"]
    out = [f"| {rows} | draws | {table['target']} | " + " | ".join(own) + " |", "|---" * (len(own) + 3) + "|"]
    for task in next(iter(own.values())):
        values = " | ".join(f"{own[method][task]['accuracy']:.1f}" for method in own)
        draws = "" if task == "mean" else len(own["full"][task]["draws"])
        out.append(f"| {task} | {draws} | {targets.get(task, '')} | {values} |")
    known = [targets[task] for task in own["full"] if task in targets]
    if known:
        values = " | ".join(f"{row['mean']['accuracy_beside_target']:.1f}" for row in own.values())
        out.append(f"| mean of tasks that have the target | | {_mean(known):.1f} | {values} |")
    return out


def _times(table: dict, rows: str) -> list[str]:
    head = " | ".join(f"after {mark:g} s" for mark in MARKS)
    out = [f"| {rows}, mean | rate | {head} | in the end | core seconds | as good as generated | core seconds until then |"]
    out.append("|---" * (len(MARKS) + 6) + "|")
    for method, own in table[rows].items():
        mean, hits = own["mean"], own["mean"]["reached"]
        early = " | ".join(f"{value:.1f}" for value in mean["after"].values())
        until = "" if hits["core_seconds"] is None else f"{hits['core_seconds']:.1f}"
        out.append(
            f"| {method} | {table['rates'][rows][method]:g} | {early} | {mean['accuracy']:.1f} | {mean['core_seconds']:.1f} "
            f"| {hits['runs']} of {hits['of']} | {until} |"
        )
    return out
