"""vLLM: what it would refuse of an adapter, told before it is asked, and the call that makes it load one.

The rules are those of `vllm/plugins/lora_resolvers/filesystem_resolver.py` (03c45fd8), `vllm/lora/peft_helper.py` and
`vllm/lora/lora_model.py` (0306474e). None of vLLM's code is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

from ltdi.adapters.adapter import LORA, PREFIX
from ltdi.errors import AdapterRefused

REQUIRED = ("r", "lora_alpha", "target_modules")
HEADS = ("classifier", "score")
MAX_LORA_RANK = 16  # its own default
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
MAX_WORDS = 300  # characters of a server's answer that are told


def refusals(
    config: Mapping[str, Any], names: Iterable[str], *, base_model: str, max_lora_rank: int = MAX_LORA_RANK,
    modules: Collection[str] | None = None, heads: bool = True,
) -> list[str]:
    """Why vLLM would not serve an adapter; empty where it would.

    Args:
        config: of `adapter_config.json`.
        names: of the tensors in `adapter_model.safetensors`.
        base_model: what the server calls its model: the exact string of `--model`, which `--served-model-name` replaces.
        max_lora_rank: of the server's `--max-lora-rank`.
        modules: last parts of the names of layers that the server gives LoRA to; any where absent.
        heads: whether it takes classification heads (`score`, `classifier`), which releases before PR 53555 refuse.
    """
    found = [f"the config lacks {key}" for key in REQUIRED if key not in config]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type is {config.get('peft_type')!r}; it must be 'LORA'")
    if config.get("base_model_name_or_path") != base_model:
        found.append(f"base_model_name_or_path is {config.get('base_model_name_or_path')!r}; the server's model is {base_model!r}")
    if config.get("use_dora"):
        found.append("DoRA is not supported")
    if config.get("bias", "none") != "none":
        found.append(f"bias is {config.get('bias')!r}; it must be 'none'")
    if isinstance(config.get("r"), int) and config["r"] > max_lora_rank:
        found.append(f"r is {config['r']}, larger than max_lora_rank {max_lora_rank}")
    saved = set(config.get("modules_to_save") or ())
    if saved - set(HEADS if heads else ()):
        found.append(f"modules_to_save holds {sorted(saved - set(HEADS if heads else ()))}, which it does not take")
    return found + _unexpected(names, modules, heads)


def _unexpected(names: Iterable[str], modules: Collection[str] | None, heads: bool) -> list[str]:
    """Tensors by whose names it would stop: those are what it goes by, not target_modules."""
    found = []
    for name in names:
        own = name.removeprefix(PREFIX)
        if match := LORA.fullmatch(own):
            if modules is not None and match["path"].rsplit(".", 1)[-1] not in modules:
                found.append(f"module {match['path']!r} is not among {sorted(modules)}")
        elif not heads or own.split(".")[0] not in HEADS:
            found.append(f"tensor {name!r} is no LoRA weight")
    return found


def load_adapter(
    url: str, name: str, folder: str | Path, *, replace: bool = False, key: str | None = None, timeout: float = 60.0
) -> str:
    """Have a running vLLM load an adapter.

    Args:
        url: of the server; it runs with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=true`.
        name: requests then say `"model": name`.
        folder: where the server finds the adapter, on its own disk.
        replace: also where an adapter of this name is loaded, in its place (`load_inplace`).
        key: sent as a bearer token.
        timeout: seconds.

    Returns:
        What the server says.

    Raises:
        AdapterRefused: it refused, cannot be reached, or cannot load adapters while it runs.
    """
    body = {"lora_name": name, "lora_path": str(folder)} | ({"load_inplace": True} if replace else {})
    return _asked(url, LOAD, body, key, timeout)


def unload_adapter(url: str, name: str, *, key: str | None = None, timeout: float = 60.0) -> str:
    """Have a running vLLM let go of an adapter; as for `load_adapter`."""
    return _asked(url, UNLOAD, {"lora_name": name}, key, timeout)


def _asked(url: str, path: str, body: dict[str, Any], key: str | None, timeout: float) -> str:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with httpx.Client(timeout=timeout, trust_env=False, headers=headers) as client:
            answer = client.post(url.rstrip("/").removesuffix("/v1") + path, json=body)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise AdapterRefused(f"the server cannot be reached: {type(error).__name__}") from error
    if answer.status_code == 200:
        return answer.text[:MAX_WORDS]
    raise AdapterRefused(f"the server answered {answer.status_code}: {_words(answer)}{_remedy(answer)}")


def _words(answer: httpx.Response) -> str:
    """The message of an error, in any of the shapes in which vLLM's releases send it."""
    try:
        said = answer.json()
        said = said.get("error", said)
        said = said.get("message", said.get("detail", said)) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = answer.text
    return " ".join(str(said).split())[:MAX_WORDS]


def _remedy(answer: httpx.Response) -> str:
    if answer.status_code == 404 and _words(answer) == "Not Found":
        return "; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=true"
    if answer.status_code == 404:
        return "; the path is on the server's disk: share the folder with it"
    if "already been" in answer.text:
        return "; ask for its replacement"
    return ""
