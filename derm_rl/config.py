"""Presets: strict, typed settings from ``params/<preset>.yaml`` plus overrides.

An unknown key or a wrong type is an error that names the key, what was expected and what was found.
Every field is described in :mod:`derm_rl.settings`; ``derm-rl presets --show demo`` prints it all.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from derm_rl import masking, paths
from derm_rl.caption_settings import CaptionsConfig, ReleaseConfig
from derm_rl.errors import FileError, Mendable
from derm_rl.io import parse_yaml, read_yaml
from derm_rl.settings import (
    AlignmentConfig,
    ClassifierConfig,
    DataConfig,
    DDPOConfig,
    FinetuneConfig,
    PipelineConfig,
    Section,
    count,
    near,
)

FIGURES_OF_STAGE = "DERM_RL_FIGURES_OF_STAGE"


class ConfigError(Mendable, ValueError):
    """A preset or an override that cannot be used; a key that was pasted into one is not shown."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(masking.mask(message))


class MissingArtifact(Mendable, FileNotFoundError):
    """A stage whose result is needed has not been run."""


class Config(Section):
    """A validated preset; :func:`load` makes one."""

    name: str = Field(description="name of the preset")
    description: str = Field(description="what it is for")
    seed: int = count("seed of everything that is trained", 0)
    processes: int = count("processes that fine-tune and run DDPO: one a GPU, or some on the CPU")
    image_size: int = Field(ge=16, description="side of the square images, in pixels")
    data: DataConfig
    classifier: ClassifierConfig
    pipeline: PipelineConfig
    finetune: FinetuneConfig
    ddpo: DDPOConfig
    alignment: AlignmentConfig
    captions: CaptionsConfig
    release: ReleaseConfig
    overrides: tuple[str, ...] = Field((), description="key=value where it is not the preset's")
    data_root: Path | None = Field(None, description="folder of the real images")

    @model_validator(mode="after")
    def _decoys_fit(self) -> Config:
        if self.classifier.decoys and self.data.source != "phantom":
            raise ValueError(
                f"classifier.decoys is {self.classifier.decoys:g}, but decoys are drawn into "
                f"phantoms only: with data.source {self.data.source} it must be 0"
            )
        return self

    def stage_dir(self, stage: str) -> Path:
        """Folder of a stage's result; its own under overrides of what the stage reads."""
        return paths.RUNS / self.name / (stage + self.suffix(stage))

    @property
    def figures_dir(self) -> Path:
        """``figures/`` for demo, ``figures/<preset>`` for real data; else under ``runs/``.

        The environment variable of :data:`FIGURES_OF_STAGE` names another one: what a stage draws
        under ``derm-rl reproduce`` is part of its result first, and is copied here when it is done.
        """
        if folder := os.environ.get(FIGURES_OF_STAGE):
            return Path(folder)
        if not self.overrides and self.name == "demo":
            return paths.FIGURES
        if not self.overrides and self.data.source != "phantom":
            return paths.FIGURES / self.name
        return paths.RUNS / self.name / ("figures" + self.suffix())

    @property
    def reviews_dir(self) -> Path:
        """Verdicts of human readers on image–text pairs; no stage ever overwrites them."""
        return paths.RUNS / self.name / "reviews"

    def require(self, stage: str) -> Path:
        """Folder of a finished stage.

        Raises:
            MissingArtifact: it has not been run; the message says how to.
        """
        folder = self.stage_dir(stage)
        if (folder / "stage.json").is_file():
            return folder
        raise MissingArtifact(
            f"{folder} has no finished result of stage {stage}. Run notebook {stage}.ipynb, or: "
            f"{self.command('--only', stage[:2])}"
        )

    def command(self, *options: str) -> str:
        """The command line that runs this preset, with its overrides and data."""
        changes = [part for change in self.overrides for part in ("--set", change)]
        root = ["--data-root", str(self.data_root)] if self.data_root else []
        return shlex.join(
            ["derm-rl", "reproduce", "--preset", self.name, *options, *changes, *root]
        )

    def subset(self, stage: str) -> dict[str, Any]:
        """The settings a stage reads, for its content hash."""
        full = self.model_dump(mode="json")
        return {key: full[key] for key in _sections_of(stage)}

    def suffix(self, stage: str | None = None) -> str:
        """Empty, or a short hash of the overrides: those that a stage reads, or all."""
        sections = None if stage is None else _sections_of(stage)
        mine = sorted(
            o for o in self.overrides if not sections or o.split("=")[0].split(".")[0] in sections
        )
        return "-" + hashlib.sha256("\n".join(mine).encode()).hexdigest()[:8] if mine else ""


_DATA = ("seed", "image_size", "data")
_TUNED = (*_DATA, "processes", "pipeline", "finetune")
STAGES: dict[str, tuple[str, ...]] = {
    "01_data": _DATA,
    "02_reward_classifier": (*_DATA, "classifier", "pipeline"),
    "03_finetune_stable_diffusion": _TUNED,
    "04_ddpo": (*_TUNED, "classifier", "ddpo"),
    "05_alignment": (*_TUNED, "classifier", "ddpo", "alignment"),
    "06_quality": (*_TUNED, "classifier", "ddpo", "alignment"),
    "09_image_text_pairs": ("seed", "captions"),
    "10_review_and_release": ("seed", "captions", "release"),
}


def _sections_of(stage: str) -> tuple[str, ...]:
    if stage not in STAGES:
        raise KeyError(f"unknown stage {stage!r}; stages are {', '.join(STAGES)}")
    return STAGES[stage]


def presets() -> dict[str, str]:
    """Name and description of every preset; of a file that is none, what is wrong with it."""
    found = {}
    for name in _names():
        try:
            found[name] = load(name).description
        except ConfigError as error:
            found[name] = f"broken: {error}"
    return found


def _names() -> list[str]:
    return sorted(file.stem for file in paths.PARAMS.glob("*.yaml"))


def load(preset: str, overrides: Sequence[str] = (), data_root: str | Path | None = None) -> Config:
    """Read and check a preset.

    Args:
        preset: name of a file in ``params/``, without ``.yaml``.
        overrides: ``"ddpo.epochs=3"``; the value is read as YAML. What is the preset's own value
            anyway is no override: the same settings are the same run, however they are written.
        data_root: folder of the real images, for presets that use some.

    Raises:
        ConfigError: names the file or override, the key, what was expected and what was found.
    """
    masking.guard()
    for override in overrides:
        masking.hide_pasted(override)
    file = paths.PARAMS / f"{preset}.yaml"
    if preset not in _names():
        if not _names():
            raise ConfigError(f"{paths.PARAMS}: no presets here; run this in a checkout of derm_rl")
        raise ConfigError(f"unknown preset {preset!r}{near(preset, _names())}")
    root = Path(data_root).expanduser().resolve() if data_root else None
    plain = _read(file)
    values = copy.deepcopy(plain)
    for override in overrides:
        _apply(values, override)
    beside = {"name": preset, "data_root": root}
    where = f"{file.name}" + (f" with {', '.join(overrides)}" if overrides else "")
    config = _checked(beside | values, where)
    masking.keep_variable(config.captions.api_key_env)
    if not overrides:
        return config
    changes = _changes(_checked(beside | plain, file.name), config)
    return config.model_copy(update={"overrides": tuple(sorted(changes))})


def _checked(values: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = [_explain(where, e) for e in error.errors()]
    raise ConfigError("\n".join(faults))  # not from there: the cause would hold what was pasted


def _changes(before: Section | None, after: Section, prefix: str = "") -> Iterator[str]:
    """``key=value`` for every setting of ``after`` that is another one in ``before``."""
    for name in type(after).model_fields:
        old, new = getattr(before, name, None), getattr(after, name)
        if isinstance(new, Section) and isinstance(old, Section):
            yield from _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}={_text(after.model_dump(mode='json', include={name})[name])}"


def _text(value: Any) -> str:
    """A value as :func:`_apply` reads it back."""
    quoted = '"' if isinstance(value, str) and _number(value) != value else None
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=quoted, width=math.inf, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def check_data_root(config: Config) -> None:
    """Raise :class:`ConfigError` unless the folder that a real preset reads is there."""
    if config.data.source == "phantom":
        return
    if config.data_root is None:
        raise ConfigError(
            f"preset {config.name} reads real images: name their folder with --data-root DIR"
        )
    if not config.data_root.is_dir():
        raise ConfigError(f"--data-root {config.data_root}: no such folder")


def describe(config: Config) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, description) of every setting."""

    def walk(section: Section, prefix: str) -> Iterator[tuple[str, Any, str]]:
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, Section):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value, field.description or ""

    return walk(config, "")


def _read(file: Path) -> dict[str, Any]:
    try:
        values = read_yaml(file)
    except FileError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{file}: expected a mapping of keys to values, found {found}")
    if strange := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{file}: unknown key {strange[0]!r}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as ddpo.epochs=3")
    *parents, last = key.strip().split(".")
    section: Any = values
    for part in parents:
        if not isinstance(section, Mapping):
            raise ConfigError(f"override {override!r}: {part!r} is below a value, not a section")
        if part not in section:
            raise ConfigError(f"override {override!r}: unknown key {part!r}{near(part, section)}")
        section = section[part]
    if not isinstance(section, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value, not a section")
    # Names of rewards are values, so a new one may be added; every other key must be there.
    if last not in section and parents != ["ddpo", "rewards"]:
        raise ConfigError(f"override {override!r}: unknown key {last!r}{near(last, section)}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    # In quotes it is meant as text.
    section[last] = _number(value) if value == text.strip() else value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 (no dot) as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _explain(where: str, error: Mapping[str, Any]) -> str:
    *parents, last = [str(part) for part in error["loc"]] or [""]
    key = ".".join([*parents, last])
    if error["type"] == "extra_forbidden":
        model: Any = Config
        for part in parents:
            kind = model.model_fields[part].annotation
            model = next((k for k in get_args(kind) if hasattr(k, "model_fields")), kind)
        return f"{where}: unknown key {key!r}{near(last, model.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    got = error["input"]
    if isinstance(got, Mapping):  # what a whole section must fulfil: its message names the key
        message = error["msg"].removeprefix("Value error, ")
        named = message.partition(":")[0] in got
        separator = "." if named and key else ": "
        return f"{where}: {key or 'preset'}{separator}{message}"
    return f"{where}: {key or 'preset'}: {error['msg']}; got {got!r:.200} ({type(got).__name__})"
