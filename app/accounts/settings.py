"""What each person may set for themselves."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LONGEST_SYSTEM_PROMPT = 8000


class PersonSettings(BaseModel):
    """A person's settings; None leaves the model's own advice, "" and "system" the browser's.

    `notify` is "" as long as nobody has asked.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    language: Literal["", "en", "de", "zh"] = ""
    theme: Literal["system", "light", "dark"] = "system"
    effort: Literal["quick", "normal", "deep"] = "normal"
    system_prompt: str = Field(default="", max_length=LONGEST_SYSTEM_PROMPT)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1, le=1000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    panel_opens: bool = True
    panel_figures: bool = True
    panel_follows: bool = True
    notify: Literal["", "on", "off"] = ""
    sound: bool = False


def settings_of(stored: dict[str, Any]) -> PersonSettings:
    """Settings as they were stored, by this version or another: what is unknown or bad is left at its default."""
    known = {name: value for name, value in stored.items() if name in PersonSettings.model_fields}
    try:
        return PersonSettings(**known)
    except ValueError:
        good = {}
        for name, value in known.items():
            try:
                PersonSettings(**{name: value})
            except ValueError:
                continue
            good[name] = value
        return PersonSettings(**good)
