"""`python -m training.adapters.commands STAGE`: the stages from texts to results, each kept under `--out`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltdi.adapters.bank import Bank
from ltdi.adapters.banked import banked_bundle
from ltdi.adapters.maker import AdapterConfig, AdapterMaker, load_maker, save_maker
from ltdi.bodies.adapted import AdaptedBert
from ltdi.bodies.sentence import weights_digest
from ltdi.files import read_safetensors, write_bytes, write_json
from training.adapters.banks import (
    bank_of,
    banked,
    mean_adapter,
    others,
    read_multitask,
    read_names,
    stored_of,
    write_frozen,
    write_multitask,
    write_names,
    write_topics,
)
from training.adapters.card import card_of
from training.adapters.encoded import MOST_TOKENS, SCALE, EncodedTask, encoded_tasks, found_folder, load_encoder
from training.adapters.evaluate import SEEDS, baselines, generated, kept, pick, picked
from training.adapters.fit import FitConfig
from training.adapters.generators import multitasks, new_generator, read_episodes, read_generator, write_generator
from training.adapters.learn import LearnConfig, learn
from training.adapters.masking import masking_of
from training.adapters.multitask import MultiTaskConfig, train_multitask
from training.adapters.start import StartConfig, learn_start, save_start
from training.adapters.store import final, prepare
from training.adapters.table import lines, make_table, read_results
from training.adapters.tasks import FOLDS, MEASURED
from training.adapters.tuned import FEW, RATE_TASKS, STEPS, TUNED, chosen_rates, try_rates, tune_all
from training.adapters.tuning_table import make_tuning_table, read_targets, tuning_lines

MODEL = "all-MiniLM-L6-v2"


def say(line: str) -> None:
    """A line of progress, at once."""
    print(line, flush=True)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("stage", choices=sorted(STAGES))
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--model", default=MODEL)
    options.add_argument("--out", type=Path, default=Path("runs/adapters"))
    options.add_argument("--results", type=Path, default=Path("results/adapters.json"))
    options.add_argument("--bundle", type=Path, default=Path("bundles/minilm-lora"), help="where `bundle` puts it")
    options.add_argument("--fold", type=int, default=None, help="the fold left out; -1 leaves none out")
    options.add_argument("--seeds", type=int, default=3, help="support sets of each task that `picked` tries")
    options.add_argument("--tasks", nargs="*", help="that `evaluate` and `tune` measure")
    options.add_argument("--rows", choices=sorted(STEPS), default=FEW, help="16 examples a class, or 1 000 rows, for `tune`")
    options.add_argument("--threads", type=int, default=1)
    return options


def run_start(args: argparse.Namespace) -> None:
    """The shared start."""
    encoder = load_encoder(args.model)
    lora_a, lora_b = learn_start(encoder, tasks_of(args), StartConfig(), say)
    save_start(args.out / "start.safetensors", lora_a, lora_b)


def run_prepare(args: argparse.Namespace) -> None:
    """The store of adapters, those that are measured first."""
    encoder, start = started(args)
    prepare(encoder, tasks_of(args), start, FitConfig(), args.out / "store", say, masking_of(found_folder(args.model)))


def run_multitask(args: argparse.Namespace) -> None:
    """The multi-task adapter of each fold, from the mean adapter, and of all tasks (fold -1)."""
    encoder, _ = started(args)
    tasks = tasks_of(args)
    for fold in folds_of(args):
        if (args.out / f"multitask{fold}.safetensors").is_file():
            continue
        known = others(tasks, fold)
        stored = stored_of(args.out, known)
        heads = [one.classifier[0] for one in stored]
        lora_b, heads = train_multitask(encoder, known, mean_adapter(stored), heads, MultiTaskConfig(), say, masking_of(found_folder(args.model)))
        write_multitask(args.out, fold, known, lora_b, heads)


def run_default(args: argparse.Namespace) -> None:
    """The adapter for tasks without a relative: the start, learned on for longer, A fixed."""
    encoder, start = started(args)
    tasks = tasks_of(args)
    lora_a, lora_b = learn_start(encoder, tasks, StartConfig(steps=100, learn_a=False, seed=1), say, start)
    save_start(args.out / "default.safetensors", lora_a, lora_b)


def run_frozen(args: argparse.Namespace) -> None:
    """The classifiers of the bank's tasks on the frozen body, their mean texts, and all names of classes."""
    encoder, _ = started(args)
    write_names(args.out, encoder, args.model, tasks_of(args))
    write_frozen(args.out, encoder, banked(tasks_of(args)))
    write_topics(args.out, encoder, banked(tasks_of(args)))


def run_learn(args: argparse.Namespace) -> None:
    """A generator for each fold, learned on episodes of the other folds' tasks; fold -1 learns on all."""
    encoder, _ = started(args)
    tasks = tasks_of(args)
    bank = whole_bank(args.out, tasks)
    episodes = read_episodes(args.out, encoder, tasks, bank, say)
    folds = torch.tensor([task.fold for task in banked(tasks)] + [-9])
    for fold in [*folds_of(args)]:
        generator = new_generator()
        learn(generator, bank, episodes, folds, fold, LearnConfig(), say)
        write_generator(args.out / f"generator{fold}.safetensors", generator)


def whole_bank(out: Path, tasks: Sequence[EncodedTask]) -> Bank:
    """The bank of all tasks; its default is the mean of the folds' multi-task adapters."""
    return bank_of(out, banked(tasks), torch.stack(multitasks(out)).mean(0))


def run_evaluate(args: argparse.Namespace) -> None:
    """All methods on the measured tasks, or on those of `--tasks`, one task after the other; files that exist are kept."""
    encoder, _ = started(args)
    tasks = tasks_of(args)
    for name in args.tasks or MEASURED:
        task = next(one for one in tasks if one.name == name)
        known = others(tasks, task.fold)
        held, multitask, folder = banked(known), read_multitask(args.out, task.fold), args.out / "eval"
        bank, stored = bank_of(args.out, held, multitask), [one.name for one in held]
        generator = read_generator(args.out / f"generator{task.fold}.safetensors")
        other = next(one for one in measured(tasks, task.fold) if one.name != name)
        names = read_names(args.out)[name]
        made = kept(folder / f"{name}.generated.json", generated, encoder, task, generator, bank, stored, names, other)
        say(f"{name}: generated {made['generated']} {made['weights']}")
        mean, default = mean_adapter(stored_of(args.out, known)), default_of(args.out)
        found = kept(folder / f"{name}.baselines.json", baselines, encoder, task, multitask, mean, default)
        say(f"{name}: " + ", ".join(f"{title} {best_of(rows):.1f}" for title, rows in found.items()))
        adapters = final(stored_of(args.out, held))
        for seed in SEEDS[: args.seeds]:
            chosen = kept(folder / f"{name}.pick{seed}.json", pick, encoder, task, stored, adapters, seed)["chosen"]
            found = kept(folder / f"{name}.picked{seed}.json", picked, encoder, task, stored, adapters, chosen, seed)
            say(f"{name}: picked {best_of([found['picked']]):.1f} {found['chosen']}")


def default_of(out: Path) -> Tensor:
    """The start, learned on for longer."""
    return read_safetensors(out / "default.safetensors", "default adapter")[0]["lora_b"]


def run_export(args: argparse.Namespace) -> None:
    """The generator that knows all tasks as a folder, `bundle` under `--out`; after `learn --fold -1`."""
    encoder, _ = started(args)
    known = banked(tasks_of(args))
    config = AdapterConfig(
        args.model, weights_digest(found_folder(args.model)), MOST_TOKENS, SCALE, tuple(task.name for task in known)
    )
    generator, bank = read_generator(args.out / "generator-1.safetensors"), whole_bank(args.out, known)
    maker = AdapterMaker(config, generator, bank, encoder.lora_a)
    save_maker(args.out / "bundle", maker)


def run_bundle(args: argparse.Namespace) -> None:
    """What `export` wrote as a bundle that the service takes, with the card of the `table` in `--results` if that is of this model."""
    maker, base = load_maker(args.out / "bundle"), hub_name(args.model)
    digest = banked_bundle(maker, args.bundle.name, base).save(args.bundle)
    say(f"bundle {args.bundle}, digest {digest}")
    table = table_of(args.results, args.model)
    if table is None:
        say(f"{args.results} is no table of {args.model}: the bundle has no card; make one by `evaluate`, `table` and `bundle` again")
        return
    card = card_of(args.bundle.name, digest, base, len(maker.config.tasks), table)
    write_json(args.bundle / "card.json", card)
    write_bytes(args.bundle / "card.md", (card["text"] + "\n").encode())


def hub_name(model: str) -> str:
    """What adapters call their base model unless a request says otherwise: where the shipped encoder is found; a path as it is."""
    return f"sentence-transformers/{model}" if model == MODEL else model


def table_of(results: Path, model: str) -> dict | None:
    """What `table` wrote, where it is of this model."""
    said = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    return said if said.get("model") == model else None


def run_table(args: argparse.Namespace) -> None:
    """The table of all that is measured, into `--results`."""
    table = {"model": args.model} | make_table(read_results(args.out / "eval"))
    write_json(args.results, table)
    for line in lines(table):
        say(line)
    for own, differences in table["less"].items():
        for title, difference in differences.items():
            say(f"{own} less {title}: {difference}")


def run_tune_rates(args: argparse.Namespace) -> None:
    """The learning rate of each way of tuning, on tasks that are not tuned, into `adapters-tuning-rates.json` beside `--results`."""
    found = {}
    for rows, names in RATE_TASKS.items():
        tasks = encoded_tasks(args.data, args.model, args.out / "tokens", names)
        found[rows] = try_rates(found_folder(args.model), tasks, rows, args.out, say)
    write_json(rates_file(args), found)


def run_tune(args: argparse.Namespace) -> None:
    """Tuning by gradient descent at those rates; runs that exist are kept."""
    tasks = encoded_tasks(args.data, args.model, args.out / "tokens", args.tasks or TUNED)
    rates = chosen_rates(rates_file(args), args.rows)
    tune_all(found_folder(args.model), tasks, args.rows, range(args.seeds), rates, args.out, say)


def run_tune_table(args: argparse.Namespace) -> None:
    """The table of tuning, beside the generated adapters of `--results`, into `adapters-tuning.json` beside it."""
    table = make_tuning_table(args.out, rates_file(args), read_targets(args.results))
    write_json(args.results.parent / "adapters-tuning.json", table)
    for line in tuning_lines(table):
        say(line)


def rates_file(args: argparse.Namespace) -> Path:
    """Where the rates lie."""
    return args.results.parent / "adapters-tuning-rates.json"


def measured(tasks: Sequence[EncodedTask], fold: int) -> list[EncodedTask]:
    """The tasks of a fold that the table shows."""
    return [task for task in tasks if task.fold == fold and task.name in MEASURED]


def folds_of(args: argparse.Namespace) -> Sequence[int]:
    """The fold asked for, or all."""
    return range(len(FOLDS)) if args.fold is None else [args.fold]


def best_of(rows: Sequence[dict]) -> float:
    """The best closed form's mean over seeds, for a line of progress only."""
    return max(sum(row[name] for row in rows) / len(rows) for name in rows[0])


def started(args: argparse.Namespace) -> tuple[AdaptedBert, Tensor]:
    """The encoder with the shared A, and the start's B."""
    tensors, _ = read_safetensors(args.out / "start.safetensors", "shared start")
    return load_encoder(args.model, tensors["lora_a"]), tensors["lora_b"]


def tasks_of(args: argparse.Namespace) -> Sequence[EncodedTask]:
    """All tasks as tokens."""
    return encoded_tasks(args.data, args.model, args.out / "tokens")


STAGES = {
    "start": run_start,
    "prepare": run_prepare,
    "default": run_default,
    "frozen": run_frozen,
    "multitask": run_multitask,
    "learn": run_learn,
    "evaluate": run_evaluate,
    "export": run_export,
    "bundle": run_bundle,
    "table": run_table,
    "tune-rates": run_tune_rates,
    "tune": run_tune,
    "tune-table": run_tune_table,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a stage."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
