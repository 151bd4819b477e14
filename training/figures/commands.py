"""`ltdi figure`: the paper's figures and tables, redone."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ltdi.bundle import resolve_device
from ltdi.errors import DataMissing, InvalidInput
from ltdi.files import write_bytes
from training.figures.backbones import LAST
from training.figures.page import EVIDENCE, page
from training.figures.registry import FIGURES, make
from training.figures.setting import Setting
from training.runs import threads


def figure(argv: list[str]) -> int:
    """Redo a figure or table of the paper: numbers as JSON and a plot; `evidence` writes the page of all of them."""
    parser = argparse.ArgumentParser(prog="ltdi figure", description=figure.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(FIGURES)}, {EVIDENCE}")
    parser.add_argument("--list", action="store_true", help="name every figure, and no more")
    parser.add_argument("--all", action="store_true", help="every figure whose data is there, then the page")
    parser.add_argument("--quick", action="store_true", help="made characters and a tiny budget: that it runs, not what it shows")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="folder of NAME.json and NAME.png")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"), help="where `evidence` is written")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data set (default: data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder whose `figures` keeps features and generators")
    parser.add_argument("--seeds", type=int, help="training seeds (default: 5, quick 2)")
    parser.add_argument("--part", choices=("val", "test"), default="test", help="val while choosing, test once")
    parser.add_argument("--bodies", nargs="+", choices=sorted(LAST), help="of torchvision, for tables 7 and 8 (default: resnet18 mobilenet_v2, with -gpu swin_t too)")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda, where the bodies of table7-gpu and table8-gpu are trained; --all makes those where it is not cpu")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own)")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{name}: {module.TITLE}" for name, module in FIGURES.items()))
        return 0
    names = [*FIGURES, EVIDENCE] if args.all else args.names
    if not names:
        raise InvalidInput(f"name a figure, or take --all; known: {', '.join(FIGURES)}, {EVIDENCE}")
    _make(names, args)
    return 0


def _make(names: list[str], args: argparse.Namespace) -> None:
    threads(args.threads or (1 if args.quick else 0))
    seeds = args.seeds or (2 if args.quick else 5)
    kept = args.runs / ("figures-quick" if args.quick else "figures")
    setting = Setting(args.data, kept, tuple(range(seeds)), args.part, args.quick)
    setting = replace(setting, bodies=tuple(args.bodies or ()), device=resolve_device(args.device).type)
    for name in names:
        if args.all and not args.quick and setting.device == "cpu" and getattr(FIGURES.get(name), "long", False):
            print(f"{name}: skipped, its bodies take a GPU: --device cuda")
            continue
        if name == EVIDENCE:
            write_bytes(args.page, page(args.out).encode())
            print(f"page {args.page}")
            continue
        try:
            made = make(name, setting, args.out)
        except DataMissing as error:
            if not args.all:
                raise
            print(f"{name}: skipped, {error}")
        else:
            print(f"{name}: {args.out / name}.json, .png, {made['seconds']} s")
