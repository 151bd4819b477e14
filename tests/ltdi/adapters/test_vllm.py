"""What vLLM asks of an adapter, and the call that has it load one, against a server that answers as vLLM does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ltdi.adapters import folder_of, read_folder, write_folder
from ltdi.adapters.vllm import load_adapter, refusals, unload_adapter
from ltdi.errors import AdapterRefused
from tests.ltdi.adapters.test_formats import MODULE, adapter

NAMES = tuple(adapter().tensors)
CHANGES = [
    ("peft type", {"peft_type": "LOHA"}, {}, "peft_type is 'LOHA'"),
    ("another string for the same base", {"base_model_name_or_path": "org/base-1"}, {}, "the server's model is 'org/Base-1'"),
    ("DoRA", {"use_dora": True}, {}, "DoRA"),
    ("biases", {"bias": "lora_only"}, {}, "bias is 'lora_only'"),
    ("rank", {"r": 32}, {}, "r is 32, larger than max_lora_rank 16"),
    ("other whole modules", {"modules_to_save": ["classifier", "pooler"]}, {}, "modules_to_save holds ['pooler']"),
    ("an old release", {}, {"heads": False}, "modules_to_save holds ['classifier']"),
    ("modules that get no LoRA there", {}, {"modules": {"q_proj", "v_proj"}}, f"module '{MODULE.removeprefix('base_model.model.')}'"),
]  # fmt: skip


def test_an_adapter_of_ours_is_taken() -> None:
    assert refusals(adapter().config(), NAMES, base_model="org/Base-1", modules={"query", "value"}) == []
    assert refusals(adapter(r=32).config(), NAMES, base_model="org/Base-1", max_lora_rank=64) == []


@pytest.mark.parametrize(("config", "server", "words"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_what_vllm_refuses_is_told_before(config: dict, server: dict, words: str) -> None:
    found = refusals(adapter().config() | config, NAMES, **{"base_model": "org/Base-1", **server})
    assert any(words in one for one in found), found


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules"])
def test_what_vllm_requires_is_told_where_it_lacks(key: str) -> None:
    config = {name: value for name, value in adapter().config().items() if name != key}
    assert refusals(config, NAMES, base_model="org/Base-1") == [f"the config lacks {key}"]


def test_a_foreign_tensor_is_told() -> None:
    assert "is no LoRA weight" in refusals(adapter().config(), [*NAMES, "base_model.model.bert.x"], base_model="org/Base-1")[0]


class Vllm(BaseHTTPRequestHandler):
    """The two routes as vLLM's `serving` answers them; `updating=False` is a server that has them not."""

    loaded: dict[str, str]
    updating, key = True, ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            return self._answer(401, {"error": "Unauthorized"})
        if not self.updating or self.path not in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return self._answer(404, {"detail": "Not Found"})
        name = body.get("lora_name", "")
        if self.path.endswith("/unload_lora_adapter"):
            if self.loaded.pop(name, None) is None:
                return self._error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
            return self._answer(200, f"Success: LoRA adapter '{name}' removed successfully.")
        path = body.get("lora_path", "")
        if not name or not path:
            return self._error(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.loaded and not body.get("load_inplace"):
            words = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
            return self._error(400, words, "InvalidUserInput")
        config = Path(path) / "adapter_config.json"
        if not config.is_file():
            return self._error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        if json.loads(config.read_text())["r"] > 16:
            return self._error(400, "LoRA rank 64 is greater than max_lora_rank 16.", "BadRequestError")
        self.loaded[name] = path
        return self._answer(200, f"Success: LoRA adapter '{name}' added successfully.")

    def _error(self, status: int, words: str, kind: str) -> None:
        self._answer(status, {"error": {"message": words, "type": kind, "param": None, "code": status}})

    def _answer(self, status: int, said: object) -> None:
        content = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def vllm(**settings: object) -> Iterator[tuple[str, dict[str, str]]]:
    """Its address, and what it has loaded: path by name."""
    loaded: dict[str, str] = {}
    handler = type("Handler", (Vllm,), {"loaded": loaded, **settings})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", loaded
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_loads_replaces_and_unloads(tmp_path: Path) -> None:
    folder = write_folder(adapter(), folder_of(tmp_path, "team/one"))
    with vllm() as (url, loaded):
        assert load_adapter(url, "team/one", folder) == "Success: LoRA adapter 'team/one' added successfully."
        assert read_folder(loaded["team/one"]).labels == adapter().labels
        with pytest.raises(AdapterRefused, match=r"already been loaded.*ask for its replacement"):
            load_adapter(f"{url}/v1/", "team/one", folder)
        load_adapter(f"{url}/v1/", "team/one", folder, replace=True)
        assert "removed" in unload_adapter(url, "team/one") and not loaded
        with pytest.raises(AdapterRefused, match="404: The lora adapter 'team/one' cannot be found"):
            unload_adapter(url, "team/one")


def test_refusals_of_a_server_say_what_to_do(tmp_path: Path) -> None:
    with vllm() as (url, _):
        with pytest.raises(AdapterRefused, match=r"No adapter found.*share the folder"):
            load_adapter(url, "one", tmp_path / "elsewhere")
        large = write_folder(adapter(r=64, tensors=adapter().tensors), tmp_path / "large")
        with pytest.raises(AdapterRefused, match="400: LoRA rank 64 is greater"):
            load_adapter(url, "large", large)
    with vllm(updating=False) as (url, _), pytest.raises(AdapterRefused, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=true"):
        load_adapter(url, "one", tmp_path)
    with vllm(key="secret") as (url, _):
        with pytest.raises(AdapterRefused, match="401: Unauthorized"):
            load_adapter(url, "one", large)
        with pytest.raises(AdapterRefused, match="400: LoRA rank"):
            load_adapter(url, "one", large, key="secret")
    for nowhere in (url, "http://", "no address", "ftp://x"):
        with pytest.raises(AdapterRefused, match="cannot be reached"):
            load_adapter(nowhere, "one", tmp_path)
