"""Where a process runs: settings by flag, by `LTDI_*` variable and by file, in that order; unknown ones are refused."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ltdi.config import nearest
from ltdi.errors import InvalidConfig

PREFIX = "LTDI_"
FILE_VARIABLE = PREFIX + "CONFIG"


class Settings(BaseSettings):
    """Everything that an operator may choose; `ltdi serve --help` prints this table."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the bundles run")
    worker: Literal["process", "thread"] = Field(
        "process", description="what runs torch: a process beside the server's, or a thread in it (less memory, fewer small heads a second)"
    )
    bundle: Annotated[tuple[str, ...], NoDecode] = Field(
        ("omniglot", "omniglot-background", "minilm", "any-embedding"), min_length=1, description="shipped names or folders, comma separated; the first is the default"
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="bytes of one request body")
    max_header_bytes: int = Field(16 * 2**10, ge=1024, le=48 * 2**10, description="bytes of one request's headers")
    max_items: int = Field(12_000, ge=2, description="examples, pool items, inputs or queries in one request")
    max_pixels: int = Field(16_000_000, ge=1, le=16_000_000, description="pixels of one image, read from its header")
    max_total_pixels: int = Field(400_000_000, ge=1, description="pixels of all images in one request")
    queue_length: int = Field(64, ge=1, description="requests that may wait for the generator")
    max_batch: int = Field(64, ge=1, description="waiting requests that are taken together")
    answer_seconds: float = Field(30.0, gt=0, description="from the body's end until work must have begun; once begun, until an adapter must be made")
    head_seconds: float = Field(10.0, gt=0, description="to read one request's line and headers")
    body_seconds: float = Field(30.0, gt=0, description="to read one request body, or for a caller to go on taking an answer")
    drain_seconds: float = Field(20.0, ge=0, description="to finish work in hand after SIGTERM")
    leave_seconds: float = Field(1.0, ge=0, description="after SIGTERM, to answer that it is leaving before it stops listening")
    keys_file: Path | None = Field(None, description="API keys, one a line; every caller may ask where it is absent")
    admin_keys_file: Path | None = Field(None, description="keys for /admin/reload; no such route where it is absent")
    key_tries_per_minute: int = Field(10, ge=1, description="wrong keys of one client address before it has to wait")
    otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://[^\s/]+", description="OpenTelemetry collector, as http://HOST:4318; no traces where absent"
    )
    cache_items: int = Field(256, ge=0, description="artefacts kept for repeated requests and /artefacts; 0 keeps none")
    embedder_url: str = Field("", description="embedding endpoint that reads texts for bundles of features")
    embedder_protocol: Literal["openai", "tei"] = Field("openai", description="what it speaks: /v1/embeddings or /embed")
    embedder_model: str = Field("", description="model's name as the embedding endpoint knows it")
    embedder_key_file: str = Field("", description="file that holds the embedding endpoint's bearer token")
    embedder_seconds: float = Field(10.0, gt=0, description="for one call of the embedding endpoint, a try")
    embedder_retries: int = Field(2, ge=0, le=10, description="further tries of a call of the embedding endpoint")
    embedder_batch: int = Field(32, ge=1, le=4096, description="texts in one call of the embedding endpoint")
    embedder_concurrency: int = Field(8, ge=1, le=256, description="calls of the embedding endpoint at a time")

    @field_validator("bundle", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Settings from flags, over the environment, over a TOML file, over the defaults.

    Args:
        flags: those that were given, by field name.
        file: `LTDI_CONFIG` where absent; no file where that is absent too.

    Raises:
        InvalidConfig: an unknown setting, an impossible value, or a file that cannot be read.
    """
    _refuse_unknown_variables(os.environ)
    chosen = file or (Path(os.environ[FILE_VARIABLE]) if os.environ.get(FILE_VARIABLE) else None)
    if chosen is not None:
        _refuse_unknown_keys(chosen)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=chosen)

    try:
        return FromFile(**flags)
    except ValidationError as error:
        raise InvalidConfig(_explain(error)) from error


def flag_of(field: str) -> str:
    """`max_items` to `--max-items`."""
    return "--" + field.replace("_", "-")


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = [PREFIX + name.upper() for name in Settings.model_fields] + [FILE_VARIABLE]
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise InvalidConfig(f"the environment has the unknown variable {name}; {nearest(name.upper(), known)}")


def _refuse_unknown_keys(file: Path) -> None:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"settings file {file.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidConfig(f"settings file {file.name} is not TOML: {error}") from error
    for key in values:
        if key not in Settings.model_fields:
            raise InvalidConfig(f"settings file {file.name} has {key!r}; {nearest(key, list(Settings.model_fields))}")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    variable = PREFIX + name.upper()
    return f"setting {name} ({flag_of(name)}, {variable}) is {first.get('input')!r}: {first['msg'].lower()}"
