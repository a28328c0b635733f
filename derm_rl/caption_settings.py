"""The sections of a preset that make image–text pairs (stages 09 and 10)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from derm_rl.masking import refuse_key
from derm_rl.settings import Section, check_names, count, fraction, positive

# Keys of data.open_access.SOURCES, which this floor must not import; a test compares them.
SOURCES = ("derm12345", "bcn20000", "pad_ufes_20", "scin", "hiba", "ham10000", "phantom")
LANGUAGES = ("en", "ja")


class CaptionsConfig(Section):
    sources: list[str] = Field(min_length=1, description="sources of images, in their order")
    images: int | None = Field(
        ge=1, description="images of each source, whole patients; null = all (not for phantom)"
    )
    phantom_seed: int = count("seed of the phantom's images", 0)
    image_size: int = Field(
        ge=32, description="longest side in pixels of what is shown to the teacher and released"
    )
    measured_size: int = Field(ge=32, description="longest side at which images are measured")
    on_error: Literal["raise", "exclude"] = Field(
        description="what a missing or broken image does: stop, or be left out and reported"
    )
    languages: list[str] = Field(min_length=1, description="drawn with equal chances: en, ja")
    general: int = count("general questions an image", 0)
    specific: int = count("questions of the source's own pool an image", 0)
    multi: float = fraction("share of images with a conversation of two or three turns")
    grounded: float = fraction("share of questions with metadata in the prompt; else blind")
    self_instruct: int = count("images about which the teacher proposes questions", 0)
    proposed: float = fraction("share of the general questions that are accepted proposals")
    teacher: str = Field(
        description="measured (by rules, offline), or provider:model, e.g. openai:gpt-4o"
    )
    base_url: str | None = Field(description="of an OpenAI-compatible server (vLLM, Ollama)")
    api_key_env: str | None = Field(description="environment variable with the key for base_url")
    judge: str | None = Field(description="a second teacher that judges each pair; null = none")
    concurrency: int = count("calls in flight at most")
    requests_per_minute: float | None = Field(gt=0, description="calls a minute; null = any")
    budget: float | None = Field(ge=0, description="US dollars at most; null = no limit")
    timeout: float = positive("seconds for one call")
    attempts: int = count("calls for one question, before it counts as failed")

    @field_validator("teacher", "judge", "base_url", "api_key_env")
    @classmethod
    def _no_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        refuse_key(f"captions.{info.field_name}", value)
        return value

    @model_validator(mode="after")
    def _known(self) -> CaptionsConfig:
        check_names("sources", self.sources, SOURCES)
        check_names("languages", self.languages, LANGUAGES)
        for key in ("teacher", "judge"):
            name = getattr(self, key)
            if name not in (None, "measured") and not all(name.partition(":")):
                raise ValueError(f"{key}: expected measured or provider:model, got {name!r}")
        if self.judge == "measured":
            raise ValueError("judge: the rule-based teacher cannot judge; name a provider:model")
        if "phantom" in self.sources and self.images is None:
            raise ValueError("images must say how many phantoms to draw, null is for real data")
        if not (self.general or self.specific or self.multi):
            raise ValueError("general, specific and multi are all 0: nothing would be asked")
        return self


class ReleaseConfig(Section):
    upper_error: float = Field(
        gt=0, lt=1, description="error rate that the review is to bound, with 95 % confidence"
    )
    overlap: float = fraction("share of the reviewed pairs that every reader sees, for kappa")
    licences: list[str] | None = Field(
        description="licences that may enter; null = all that let changed copies be passed on"
    )
    images: Literal["embed", "reference"] = Field(description="in Parquet, or as files beside it")
    validation: float = fraction("share of the pairs for validation", gt=0)
    test: float = fraction("share of the pairs for testing", gt=0)
