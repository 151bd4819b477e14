"""LoRA adapters: made from a few examples, written as PEFT and vLLM read them."""

from ltdi.adapters.adapter import Adapter
from ltdi.adapters.base import BaseModel
from ltdi.adapters.bundle import AdapterBundle
from ltdi.adapters.folders import folder_of, read_folder, write_folder
from ltdi.adapters.formats import from_safetensors, from_zip, to_safetensors, to_zip
from ltdi.adapters.parts import AdapterBundleConfig, AdapterParts, BaseConfig
from ltdi.adapters.target import LoraTarget, describe_target

__all__ = [
    "Adapter",
    "AdapterBundle",
    "AdapterBundleConfig",
    "AdapterParts",
    "BaseConfig",
    "BaseModel",
    "LoraTarget",
    "describe_target",
    "folder_of",
    "from_safetensors",
    "from_zip",
    "read_folder",
    "to_safetensors",
    "to_zip",
    "write_folder",
]
