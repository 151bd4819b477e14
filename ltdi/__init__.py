"""Weights on demand: classifier heads from a few examples, by trajectory diffusion."""

from ltdi.bundle import Bundle, HeadRequest, library_version, load_bundle, shipped_bundles
from ltdi.errors import (
    BundleNotFound,
    DamagedFile,
    EmptySupport,
    GenerationFailed,
    InvalidFeatures,
    InvalidImage,
    InvalidInput,
    InvalidSupport,
    LimitExceeded,
    LtDiError,
    TooFewClasses,
    UnsupportedInput,
)
from ltdi.files import safetensors_bytes
from ltdi.heads import Head, load_head
from ltdi.pipeline import Options, TaskEmbedding
from ltdi.support import SupportSet

__all__ = [
    "Bundle",
    "BundleNotFound",
    "DamagedFile",
    "EmptySupport",
    "GenerationFailed",
    "Head",
    "HeadRequest",
    "InvalidFeatures",
    "InvalidImage",
    "InvalidInput",
    "InvalidSupport",
    "LimitExceeded",
    "LtDiError",
    "Options",
    "SupportSet",
    "TaskEmbedding",
    "TooFewClasses",
    "UnsupportedInput",
    "library_version",
    "load_bundle",
    "load_head",
    "safetensors_bytes",
    "shipped_bundles",
]
