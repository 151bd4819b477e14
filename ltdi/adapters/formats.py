"""An adapter as bytes and back: one safetensors file, and PEFT's two files in a zip archive."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from typing import Any

from ltdi.adapters.adapter import TASK_TYPE, Adapter
from ltdi.errors import DamagedFile
from ltdi.files import parse_json, read_safetensors, safetensors_bytes
from ltdi.heads import is_text

FORMAT, FORMAT_VERSION = "ltdi.adapter", "1"
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
MAX_ADAPTER_BYTES, MAX_CONFIG_BYTES = 2**30, 2**20
EARLY = (1980, 1, 1, 0, 0, 0)  # the first date that zip archives know
NEEDED = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias", "target_parameters")


def to_safetensors(adapter: Adapter) -> bytes:
    """PEFT's `adapter_model.safetensors`, which also says of itself what `adapter_config.json` says.

    The same adapter gives the same bytes. `format` is `pt`, as for every file of PEFT; ours is `ltdi_format`.
    """
    facts = {
        "format": "pt",
        "ltdi_format": FORMAT,
        "format_version": FORMAT_VERSION,
        "adapter_config": json.dumps(adapter.config(), sort_keys=True),
        "labels": json.dumps(adapter.labels, ensure_ascii=False),
    }
    rest = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in adapter.metadata.items()}
    return safetensors_bytes(dict(adapter.tensors), rest | facts)


def from_safetensors(content: bytes) -> Adapter:
    """An adapter from `to_safetensors`.

    Raises:
        DamagedFile: it is not one, or holds what must not be used.
    """
    tensors, metadata = read_safetensors(content, "adapter")
    if metadata.get("ltdi_format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
        raise DamagedFile(f"not an adapter: its metadata says ltdi_format={metadata.get('ltdi_format')!r:.40}")
    return _adapter(tensors, _json_object(metadata.get("adapter_config", "")), metadata)


def to_files(adapter: Adapter) -> dict[str, bytes]:
    """The files of a PEFT folder by name, in the order in which they are to be written: the config is the last."""
    config = json.dumps(adapter.config(), indent=2, ensure_ascii=False) + "\n"
    return {WEIGHTS: to_safetensors(adapter), CARD: card(adapter).encode(), CONFIG: config.encode()}


def from_files(weights: bytes, config: bytes) -> Adapter:
    """An adapter from PEFT's two files, whoever wrote them; labels are the rows' numbers where the file names none.

    Raises:
        DamagedFile: they are not whole, hold what must not be used, or do not fit each other.
    """
    if len(config) > MAX_CONFIG_BYTES:
        raise DamagedFile(f"{CONFIG} has {len(config)} bytes; at most {MAX_CONFIG_BYTES} are read")
    tensors, metadata = read_safetensors(weights, WEIGHTS)
    try:
        text = str(config, "utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{CONFIG} is not UTF-8") from error
    own = metadata.get("ltdi_format") == FORMAT
    return _adapter(tensors, _json_object(text), metadata if own else {})


def to_zip(adapter: Adapter) -> bytes:
    """The PEFT folder as a zip archive; the same adapter gives the same bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, content in to_files(adapter).items():
            entry = zipfile.ZipInfo(name, EARLY)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content)
    return made.getvalue()


def from_zip(content: bytes) -> Adapter:
    """An adapter from `to_zip`, or from a zip archive of a PEFT folder's files.

    Raises:
        DamagedFile: no such archive, files that have no place in one, or more than is read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names) or not {CONFIG, WEIGHTS} <= set(names) <= {CONFIG, WEIGHTS, CARD}:
                raise DamagedFile(f"the archive must hold {CONFIG} and {WEIGHTS} once, and nothing else than {CARD}")
            if sum(entry.file_size for entry in entries) > MAX_ADAPTER_BYTES:
                raise DamagedFile(f"the archive holds more than {MAX_ADAPTER_BYTES} bytes")
            return from_files(_member(archive, WEIGHTS), _member(archive, CONFIG))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise DamagedFile(f"the adapter is not a whole zip archive: {error}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive, read no further than it says that it is long."""
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def card(adapter: Adapter) -> str:
    """A README for the folder: labels, base model, how it was made, how it is loaded."""
    base = json.dumps(adapter.base_model_name_or_path, ensure_ascii=False)
    rows = "\n".join(f"{row}. {json.dumps(label, ensure_ascii=False)}" for row, label in enumerate(adapter.labels))
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\ntags: [lora, ltdi]\n---\n\n# LoRA adapter, {adapter.method}\n\n"
        f"Rows of the head:\n\n{rows}\n\n```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification\n\n"
        f"base = AutoModelForSequenceClassification.from_pretrained({base}, num_labels={len(adapter.labels)})\n"
        "model = PeftModel.from_pretrained(base, FOLDER)\n```\n"
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise DamagedFile(f"the adapter's config is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DamagedFile("the adapter's config is no JSON object")
    return found


def _adapter(tensors: dict, config: dict[str, Any], metadata: dict[str, str]) -> Adapter:
    """A checked adapter of what two files say."""
    for key in NEEDED:
        if key not in config:
            raise DamagedFile(f"the adapter's config lacks {key!r}")
    if config["peft_type"] != "LORA" or config.get("task_type", TASK_TYPE) != TASK_TYPE or config.get("bias", "none") != "none":
        raise DamagedFile("the adapter is not LoRA for sequence classification without biases")
    for key in UNSUPPORTED:
        if config.get(key):
            raise DamagedFile(f"the adapter's config asks for {key}, which is not supported")
    made = Adapter(
        tensors, config["r"], config["lora_alpha"], _names(config["target_modules"], "target_modules"),
        _names(config.get("modules_to_save") or [], "modules_to_save"), (), _text(config["base_model_name_or_path"]),
        config.get("use_rslora") is True, _facts(metadata),
    )
    named = "labels" in metadata
    labels = _names(_value(metadata["labels"]), "labels") if named else tuple(map(str, range(_rows(made))))
    made = replace(made, labels=labels)
    made.check_tensors()
    return made


def _rows(adapter: Adapter) -> int:
    """Rows of the head; 0 where there is none, which `check_tensors` refuses."""
    try:
        return len(adapter.head[1])
    except (StopIteration, TypeError):
        return 0


def _names(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(is_text(name) for name in value):
        raise DamagedFile(f"the adapter's {what} must be a list of strings")
    return tuple(value)


def _text(value: Any) -> str:
    if value is not None and not is_text(value):
        raise DamagedFile("the adapter's base_model_name_or_path must be a string")
    return value or ""  # PEFT writes null for a model that came from no file


OWN = frozenset({"format", "ltdi_format", "format_version", "adapter_config", "labels"})
TEXTS = frozenset({"model", "bundle_digest", "body", "support_digest", "method"})


def _facts(metadata: dict[str, str]) -> dict[str, Any]:
    return {key: text if key in TEXTS else _value(text) for key, text in metadata.items() if key not in OWN}


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text
