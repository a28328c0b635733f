"""Presets: strict, typed settings from ``params/<preset>.yaml`` plus overrides.

An unknown key or a wrong type is an error that names the key, what was expected and what was found.
Every field is described where it stands; ``derm-rl presets --show demo`` prints the descriptions.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from derm_rl import paths, prompts


class ConfigError(ValueError):
    """A preset or an override that cannot be used."""


class MissingArtifact(FileNotFoundError):
    """A stage whose result is needed has not been run."""


class Section(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def _count(description: str, least: int = 1) -> Any:
    return Field(ge=least, description=description)


def _fraction(description: str, **bounds: float) -> Any:
    return Field(description=description, **({"ge": 0, "le": 1} | bounds))


def _positive(description: str) -> Any:
    return Field(gt=0, description=description)


def _check_names(key: str, names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: unknown name {name!r}{_near(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{key}: a name stands twice")


# Those of rewards.REWARDS, which is too heavy to import here; a test compares them.
REWARD_NAMES = ("hard", "soft", "diagnosis", "exact")
Method = Literal["full", "lora"]
Precision = Literal["no", "bf16", "fp16"]


class Split(Section):
    diffusion: float = _fraction("share of lesions for fine-tuning the diffusion model", gt=0)
    reward: float = _fraction("share for the reward classifier", gt=0)
    judge: float = _fraction("share for the judge", gt=0)
    test: float = _fraction("share that nothing is trained on", gt=0)

    @model_validator(mode="after")
    def _sum(self) -> Split:
        total = sum(self.model_dump().values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four shares must sum to 1, they sum to {total:g}")
        return self


class DataConfig(Section):
    source: Literal["phantom", "ham10000", "isic2019"] = Field(description="data set")
    images: int | None = Field(
        ge=8, description="phantom: images to draw; real: size of a lesion-wise subset, null = all"
    )
    phantom_seed: int = _count("seed of the phantom; other seeds are other images", 0)
    diagnoses: list[str] = Field(min_length=2, description="diagnosis codes, the first is positive")
    artifacts: list[str] = Field(min_length=1, description="artifact columns, in prompt order")
    min_positives: int = _count("an artifact in fewer images leaves the vocabulary", 0)
    on_error: Literal["raise", "exclude"] = Field(
        description="what a missing or broken image does: stop, or be left out and reported"
    )
    split: Split

    @model_validator(mode="after")
    def _known(self) -> DataConfig:
        _check_names("diagnoses", self.diagnoses, prompts.DIAGNOSES)
        _check_names("artifacts", self.artifacts, prompts.ARTIFACTS)
        if self.source == "phantom" and self.images is None:
            raise ValueError("images must say how many phantoms to draw, null is for real data")
        return self


class Backbone(Section):
    architecture: Literal["resnet", "convnext", "efficientnet-b0"] = Field(
        description="family of the transformers vision backbone"
    )
    widths: list[int] = Field(description="channels of each stage (not for efficientnet-b0)")
    depths: list[int] = Field(description="blocks of each stage (not for efficientnet-b0)")
    pretrained: str | None = Field(description="hub id or folder to start from, or null")


class ClassifierConfig(Section):
    reward: Backbone
    judge: Backbone
    epochs: int = _count("passes over the training images, at most")
    batch_size: int = _count("images per step")
    learning_rate: float = _positive("AdamW, peak of the cosine")
    weight_decay: float = _fraction("AdamW")
    patience: int = _count("epochs without a lower validation loss before stopping")
    bootstrap: int = _count("bootstrap resamples for each interval", 100)
    augment: bool = Field(description="flips, turns, colour, blur and noise")


class PipelineConfig(Section):
    base: str = Field(description="diffusers folder (relative to the repository) or hub id")


class FinetuneConfig(Section):
    method: Method = Field(description="train the whole UNet, or LoRA adapters")
    lora_rank: int = _count("rank of the adapters")
    steps: int = _count("optimizer steps")
    batch_size: int = _count("images per step, over all processes")
    learning_rate: float = _positive("AdamW, peak of the cosine")
    warmup_steps: int = _count("linear warm-up", 0)
    caption_dropout: float = _fraction("share of empty captions, for guidance")
    ema_decay: float = _fraction("decay of the averaged weights, which are kept")
    min_snr_gamma: float = _positive("gamma of min-SNR weighting (arXiv 2303.09556)")
    weight_decay: float = _fraction("AdamW")
    checkpoint_every: int = _count("steps between checkpoints")
    mixed_precision: Precision = Field(description="autocast of the UNet")


class DDPOConfig(Section):
    method: Method = Field(description="train the whole UNet, or LoRA adapters")
    lora_rank: int = _count("rank of the adapters")
    epochs: int = _count("rounds of sample, reward, advantage, update")
    images_per_prompt: int = _count("images of each prompt in an epoch", 2)
    prompts_per_epoch: int | None = Field(ge=1, description="random prompts an epoch; null = all")
    inference_steps: int = _count("denoising steps of a sample", 2)
    eta: float = _fraction("stochasticity of DDIM; 1 as published", gt=0)
    guidance_scale: float = Field(ge=1, description="guidance in sampling and training; 1 = none")
    learning_rate: float = _positive("AdamW, constant")
    weight_decay: float = _fraction("AdamW")
    clip_range: float = _positive("clip of the importance ratio (per-dimension log-prob)")
    advantage_clip: float = _positive("largest advantage, in standard deviations")
    updates_per_epoch: int = _count("optimizer steps on each epoch's samples")
    batch_size: int = _count("images in a sampling pass, (image, step) pairs in a training pass")
    timestep_fraction: float = _fraction("share of the trainable steps used in an update", gt=0)
    drop_last_steps: int = _count("last, least noisy steps that are not trained", 0)
    step_weighting: Literal["none", "output"] = Field(
        description="weight of each step's log-ratio: none, or equal in model-output space"
    )
    max_grad_norm: float = _positive("gradient clipping")
    rewards: dict[str, float] = Field(
        min_length=1, description="weights of hard, soft, diagnosis, exact"
    )
    buffer_size: int = _count("rewards remembered of each prompt")
    min_count: int = _count("rewards a prompt needs for statistics of its own")
    ema_decay: float = _fraction("decay of the averaged weights, which are kept")
    eval_every: int = _count("epochs between evaluations on fixed noise")
    eval_images_per_prompt: int = _count("images of each prompt in an evaluation")
    checkpoint_every: int = _count("epochs between checkpoints")
    mixed_precision: Precision = Field(description="autocast of the UNet")

    @model_validator(mode="after")
    def _consistent(self) -> DDPOConfig:
        if self.drop_last_steps >= self.inference_steps:
            raise ValueError("drop_last_steps must be smaller than inference_steps")
        if self.min_count > self.buffer_size:
            raise ValueError("min_count must not exceed buffer_size")
        _check_names("rewards", list(self.rewards), REWARD_NAMES)
        return self


class AlignmentConfig(Section):
    images_per_prompt: int = _count("images of each prompt and model")
    inference_steps: int = _count("denoising steps")
    eta: float = _fraction("stochasticity of DDIM")
    guidance_scales: list[float] = Field(min_length=1, description="each model uses its best")
    guidance_images_per_prompt: int = _count("images for choosing the guidance scale")
    batch_size: int = _count("images in one pass")
    bootstrap: int = _count("bootstrap resamples for each interval", 100)
    seed: int = _count("seed of the noise of the images", 0)


class Config(Section):
    """A validated preset; :func:`load` makes one."""

    name: str = Field(description="name of the preset")
    description: str = Field(description="what it is for")
    seed: int = _count("seed of everything that is trained", 0)
    image_size: int = Field(ge=16, description="side of the square images, in pixels")
    data: DataConfig
    classifier: ClassifierConfig
    pipeline: PipelineConfig
    finetune: FinetuneConfig
    ddpo: DDPOConfig
    alignment: AlignmentConfig
    overrides: tuple[str, ...] = Field((), description="key=value changes to the preset")
    data_root: Path | None = Field(None, description="folder of the real images")

    def stage_dir(self, stage: str) -> Path:
        """Folder of a stage's result; its own under overrides of what the stage reads."""
        return paths.RUNS / self.name / (stage + self.suffix(stage))

    @property
    def figures_dir(self) -> Path:
        """``figures/`` for demo, ``figures/<preset>`` for real data; else under ``runs/``."""
        if not self.overrides and self.name == "demo":
            return paths.FIGURES
        if not self.overrides and self.data.source != "phantom":
            return paths.FIGURES / self.name
        return paths.RUNS / self.name / ("figures" + self.suffix("05_alignment"))

    def require(self, stage: str) -> Path:
        """Folder of a finished stage.

        Raises:
            MissingArtifact: it has not been run; the message says how to.
        """
        folder = self.stage_dir(stage)
        if (folder / "stage.json").is_file():
            return folder
        options = "".join(f" --set {o}" for o in self.overrides)
        root = f" --data-root {self.data_root}" if self.data_root else ""
        raise MissingArtifact(
            f"{folder} has no finished result of stage {stage}. Run notebook {stage}.ipynb, or: "
            f"derm-rl reproduce --preset {self.name} --only {stage[:2]}{options}{root}"
        )

    def subset(self, stage: str) -> dict[str, Any]:
        """The settings a stage reads, for its content hash."""
        full = self.model_dump(mode="json")
        return {key: full[key] for key in _sections_of(stage)}

    def suffix(self, stage: str) -> str:
        """Empty, or a short hash of the overrides that a stage reads."""
        sections = _sections_of(stage)
        mine = sorted(o for o in self.overrides if o.split("=")[0].split(".")[0] in sections)
        return "-" + hashlib.sha256("\n".join(mine).encode()).hexdigest()[:8] if mine else ""


_DATA = ("seed", "image_size", "data")
STAGES: dict[str, tuple[str, ...]] = {
    "01_data": _DATA,
    "02_reward_classifier": (*_DATA, "classifier", "pipeline"),
    "03_finetune_stable_diffusion": (*_DATA, "pipeline", "finetune"),
    "04_ddpo": (*_DATA, "classifier", "pipeline", "finetune", "ddpo"),
    "05_alignment": (*_DATA, "classifier", "pipeline", "finetune", "ddpo", "alignment"),
}


def _sections_of(stage: str) -> tuple[str, ...]:
    if stage not in STAGES:
        raise KeyError(f"unknown stage {stage!r}; stages are {', '.join(STAGES)}")
    return STAGES[stage]


def presets() -> dict[str, str]:
    """Name and description of every preset."""
    files = sorted(paths.PARAMS.glob("*.yaml"))
    return {f.stem: str(_read(f).get("description", "")) for f in files}


def load(preset: str, overrides: Sequence[str] = (), data_root: str | Path | None = None) -> Config:
    """Read and check a preset.

    Args:
        preset: name of a file in ``params/``, without ``.yaml``.
        overrides: ``"ddpo.epochs=3"``; the value is read as YAML.
        data_root: folder of the real images, for presets that use some.

    Raises:
        ConfigError: names the file or override, the key, what was expected and what was found.
    """
    file = paths.PARAMS / f"{preset}.yaml"
    if not file.is_file():
        known = [f.stem for f in sorted(paths.PARAMS.glob("*.yaml"))]
        raise ConfigError(f"unknown preset {preset!r}{_near(preset, known)}")
    values = _read(file)
    for override in overrides:
        _apply(values, override)
    root = Path(data_root).expanduser().resolve() if data_root else None
    try:
        config = Config.model_validate(
            {"name": preset} | values | {"overrides": tuple(overrides), "data_root": root}
        )
    except ValidationError as error:
        where = f"{file.name}" + (f" with {', '.join(overrides)}" if overrides else "")
        raise ConfigError("\n".join(_explain(where, e) for e in error.errors())) from None
    return config


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
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a mapping of keys to values")
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
            raise ConfigError(f"override {override!r}: unknown key {part!r}{_near(part, section)}")
        section = section[part]
    if not isinstance(section, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value, not a section")
    # Names of rewards are values, so a new one may be added; every other key must be there.
    if last not in section and parents != ["ddpo", "rewards"]:
        raise ConfigError(f"override {override!r}: unknown key {last!r}{_near(last, section)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    section[last] = _number(value) if isinstance(value, str) else value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 (no dot) as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _near(name: str, known: object) -> str:
    names = [str(k) for k in known] if known else []
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def _explain(where: str, error: Mapping[str, Any]) -> str:
    *parents, last = [str(part) for part in error["loc"]] or [""]
    key = ".".join([*parents, last])
    if error["type"] == "extra_forbidden":
        model: Any = Config
        for part in parents:
            model = model.model_fields[part].annotation
        return f"{where}: unknown key {key!r}{_near(last, model.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    got = error["input"]
    return f"{where}: {key or 'preset'}: {error['msg']}; got {got!r} ({type(got).__name__})"
