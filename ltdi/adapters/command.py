"""`ltdi generate --kind lora`: a PEFT folder from a task of texts, and where wanted a server that loads it."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltdi.adapters.adapter import Adapter
from ltdi.adapters.bundle import AdapterBundle
from ltdi.adapters.folders import folder_of, write_folder
from ltdi.adapters.formats import to_safetensors
from ltdi.adapters.vllm import load_adapter
from ltdi.errors import InvalidInput

if TYPE_CHECKING:
    from ltdi.bundle import Bundle
    from ltdi.commands import Examples

DEFAULT_OUT = Path("adapters")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of adapters."""
    parser.add_argument("--kind", choices=("head", "lora"), default="head", help="what is made: a head, or a LoRA adapter (%(default)s)")
    parser.add_argument("--name", help="of the adapter, whose folder is OUT/NAME (bundle's name and the adapter's digest)")
    parser.add_argument("--base-model-name-or-path", metavar="NAME", help="what the adapter calls its base model, as vLLM compares it")
    parser.add_argument("--load-into", metavar="URL", help="have a running vLLM load the adapter")
    parser.add_argument("--load-path", metavar="DIR", help="where that server finds OUT (OUT itself)")
    parser.add_argument("--load-key-file", type=Path, metavar="FILE", help="holds the key of that server")
    parser.add_argument("--replace", action="store_true", help="also where it has an adapter of this name")


def generate_lora(bundle: Bundle | AdapterBundle, examples: Examples, options: argparse.Namespace) -> int:
    """Make an adapter, write its folder, say so."""
    if not isinstance(bundle, AdapterBundle):
        raise InvalidInput(f"bundle {bundle.name!r} makes heads; --kind lora needs one that makes adapters")
    if options.draws != 1:
        raise InvalidInput("adapters take no --draws; leave it out")
    if examples.unlabelled is not None and len(examples.unlabelled):
        raise InvalidInput("adapters use no pool; leave it out", field="task")
    seconds: Counter[str] = Counter()
    started = time.perf_counter()
    adapter = bundle.generate(
        examples.inputs, examples.labels, classes=examples.classes, descriptions=examples.descriptions, seed=options.seed, check=options.check,
        fallback=options.fallback, base_model_name_or_path=options.base_model_name_or_path,
        on_stage=lambda name, took: seconds.update({name: took}),
    )  # fmt: skip
    seconds["total"] = time.perf_counter() - started
    name = options.name or f"{bundle.name}-{sha256(to_safetensors(adapter)).hexdigest()[:12]}"
    out = options.out or DEFAULT_OUT
    folder = write_folder(adapter, folder_of(out, name))
    facts = _facts(adapter, name, folder, seconds)
    if options.load_into:
        where = Path(options.load_path) / name if options.load_path else folder
        facts["server"] = load_adapter(options.load_into, name, where, replace=options.replace, key=_key(options.load_key_file))
    print(json.dumps(facts, ensure_ascii=False, indent=2) if options.json else _report(facts))
    return 0


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the key file {file.name!r} cannot be read") from error


def _facts(adapter: Adapter, name: str, folder: Path, seconds: Counter[str]) -> dict[str, Any]:
    kept = ("method", "support_accuracy", "baseline_support_accuracy", "checks", "effect")
    return {
        "name": name, "labels": list(adapter.labels), "r": adapter.r, "base_model_name_or_path": adapter.base_model_name_or_path,
        **{key: adapter.metadata[key] for key in kept},
        "timings_ms": {stage: round(1000 * value, 3) for stage, value in seconds.items()},
        "bundle": adapter.metadata["model"], "bundle_digest": adapter.metadata["bundle_digest"], "out": str(folder),
    }  # fmt: skip


def _report(facts: dict[str, Any]) -> str:
    accuracy, baseline, effect = facts["support_accuracy"], facts["baseline_support_accuracy"], facts["effect"]
    measured = "not measured" if accuracy is None else f"{accuracy:.1%} on held-out examples; the baseline {baseline:.1%}"
    stages = ", ".join(f"{name} {value:.0f}" for name, value in facts["timings_ms"].items() if name != "total")
    lines = [
        f"labels    {', '.join(facts['labels'])}",
        f"method    {facts['method']}, by bundle {facts['bundle']} ({facts['bundle_digest'][:12]}), r = {facts['r']}",
        f"accuracy  {measured}",
        f"effect    delta {effect['delta_norm']:.3g} of the weights, a logit changes by up to {effect['logit_change']:.3g}, "
        f"{effect['support_agreement']:.0%} of the examples right",
        f"checked   {', '.join(facts['checks'])}",
        f"time      {facts['timings_ms']['total']:.0f} ms ({stages})",
        f"base      {facts['base_model_name_or_path']}",
        f"adapter   {facts['out']}",
    ]
    return "\n".join([*lines, f"server    {facts['server']}"] if "server" in facts else lines)
