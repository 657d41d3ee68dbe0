"""The settings: one frozen object, read once from PONDER_* variables and the command line.

Knows the names, the defaults and what is allowed; builds nothing.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import BadSetting

VERSION = "0.1.0"


def _home(*parts: str) -> Path:
    return Path.home().joinpath(*parts)


class Settings(BaseSettings):
    """What an operator can set; `docs/hosting.md` explains each. Bytes, seconds and tokens stand in the names."""

    model_config = SettingsConfigDict(env_prefix="PONDER_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    model: str = "auto"
    data_dir: Path = Field(default_factory=lambda: _home(".local", "share", "ponder"))
    cache_dir: Path = Field(default_factory=lambda: _home(".cache", "ponder"))
    database_url: str = ""
    base_url: str = ""
    log_level: str = "INFO"

    max_text_bytes: int = Field(default=256 * 1024, ge=1024)
    max_waiting_runs: int = Field(default=100, ge=1)
    max_context_tokens: int = Field(default=32768, ge=512)

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @model_validator(mode="after")
    def _model_is_named(self) -> Self:
        if not self.model.strip():
            raise ValueError("model: name one of auto, demo, qwq-32b, qwq-32b-preview, a Hub id or a folder")
        return self

    @property
    def resolved_database_url(self) -> str:
        """The SQLAlchemy address in use: the one set, else a SQLite file in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir / 'ponder.sqlite'}"


def read_settings(**overrides: object) -> Settings:
    """The settings from the environment, with `overrides` (the command line) on top.

    Raises:
        BadSetting: a value cannot be used; the message names its PONDER_ key.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = "_".join(["PONDER", *(str(part) for part in first["loc"])]).upper()
        raise BadSetting(f"{key} cannot be used: {first['msg']}") from error
