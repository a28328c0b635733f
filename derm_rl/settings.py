"""The sections of a preset: every setting, its type, its bounds and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from derm_rl import prompts
from derm_rl.prompts import near


class Section(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def count(description: str, least: int = 1) -> Any:
    return Field(ge=least, description=description)


def fraction(description: str, **bounds: float) -> Any:
    return Field(description=description, **({"ge": 0, "le": 1} | bounds))


def positive(description: str) -> Any:
    return Field(gt=0, description=description)


def check_names(key: str, names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: unknown name {name!r}{near(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{key}: a name stands twice")


# Those of rewards.REWARDS, which is too heavy to import here; a test compares them.
REWARD_NAMES = ("hard", "soft", "tempered", "diagnosis", "exact")
Method = Literal["full", "lora"]
Precision = Literal["no", "bf16", "fp16"]


class Split(Section):
    diffusion: float = fraction("share of lesions for fine-tuning the diffusion model", gt=0)
    reward: float = fraction("share for the reward classifier", gt=0)
    judge: float = fraction("share for the judge", gt=0)
    test: float = fraction("share that nothing is trained on", gt=0)

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
    phantom_seed: int = count("seed of the phantom; other seeds are other images", 0)
    diagnoses: list[str] = Field(min_length=2, description="diagnosis codes, the first is positive")
    artifacts: list[str] = Field(min_length=1, description="artifact columns, in prompt order")
    crop: Literal["center"] | None = Field(
        description="real images: cut the centred square, or null: squeeze the whole field into it"
    )
    min_positives: int = count("an artifact in fewer images leaves the vocabulary", 0)
    on_error: Literal["raise", "exclude"] = Field(
        description="what a missing or broken image does: stop, or be left out and reported"
    )
    split: Split

    @model_validator(mode="after")
    def _known(self) -> DataConfig:
        check_names("diagnoses", self.diagnoses, prompts.DIAGNOSES)
        check_names("artifacts", self.artifacts, prompts.ARTIFACTS)
        if self.source == "phantom" and self.images is None:
            raise ValueError("images must say how many phantoms to draw, null is for real data")
        return self


class Backbone(Section):
    architecture: Literal["resnet", "regnet", "convnext", "efficientnet-b0"] = Field(
        description="family of the transformers vision backbone"
    )
    widths: list[int] = Field(description="channels of each stage (not for efficientnet-b0)")
    depths: list[int] = Field(description="blocks of each stage (not for efficientnet-b0)")
    pretrained: str | None = Field(description="hub id or folder to start from, or null")


class Redraw(Section):
    share: float = fraction("share of the images that are redrawn", gt=0)
    strength: float = fraction("how far they are noised first; 1 keeps nothing", gt=0)
    inference_steps: int = count("denoising steps from pure noise", 2)
    guidance_scale: float = Field(ge=1, description="guidance of the redrawing; 1 = none")
    batch_size: int = count("images in one pass")


class ClassifierConfig(Section):
    reward: Backbone
    judge: Backbone
    epochs: int = count("passes over the training images, at most")
    batch_size: int = count("images per step")
    learning_rate: float = positive("AdamW, peak of the cosine")
    weight_decay: float = fraction("AdamW")
    patience: int = count("epochs without a lower validation loss before stopping")
    bootstrap: int = count("bootstrap resamples for each interval", 100)
    augment: bool = Field(description="flips, turns, colour, blur and noise")
    frozen_batchnorm: bool = Field(
        description="keep the running statistics of pretrained networks, do not learn new ones"
    )
    decoys: float = fraction(
        "share of the training images that also show decoys, which no label names; 0 on real ones"
    )
    redrawn: Redraw | None = Field(
        description="training images redrawn by pipeline.base, as the images to be judged; or null"
    )

    @model_validator(mode="after")
    def _statistics_exist(self) -> ClassifierConfig:
        for name in ("reward", "judge"):
            if self.frozen_batchnorm and getattr(self, name).pretrained is None:
                raise ValueError(
                    f"frozen_batchnorm keeps what a pretrained network knows, but "
                    f"{name}.pretrained is null: a new network has no statistics to keep"
                )
        return self


class PipelineConfig(Section):
    base: str = Field(description="diffusers folder (relative to the repository) or hub id")


class FinetuneConfig(Section):
    method: Method = Field(description="train the whole UNet, or LoRA adapters")
    lora_rank: int = count("rank of the adapters")
    steps: int = count("optimizer steps")
    batch_size: int = count("images per step, over all processes")
    learning_rate: float = positive("AdamW, peak of the cosine")
    learning_rate_floor: float = fraction("its end, as a share of the peak")
    warmup_steps: int = count("linear warm-up", 0)
    caption_dropout: float = fraction("share of empty captions, for guidance")
    ema_decay: float = fraction("decay of the averaged weights, which are kept")
    min_snr_gamma: float = positive("gamma of min-SNR weighting (arXiv 2303.09556)")
    weight_decay: float = fraction("AdamW")
    checkpoint_every: int = count("steps between checkpoints")
    mixed_precision: Precision = Field(description="autocast of the UNet")


class AlarmConfig(Section):
    gap: float = positive("labels right: reward classifier minus judge, beyond the first gap")
    look: float = positive("change of colour and edge density, in factors of two")
    diversity: float = positive("loss of variety within a prompt, in factors of two")
    stop: bool = Field(description="end the training at an alarm, or only warn")


class DDPOConfig(Section):
    objective: Literal["ddpo", "awm", "nft"] = Field(
        description="what makes an image more likely: its denoising steps (DDPO), or denoising it "
        "anew: advantage weighted matching (arXiv 2509.25050), negative-aware fine-tuning (2509."
        "16117). These two sample without noise in the steps, train the output without guidance, "
        "and do not read eta, drop_last_steps and step_weighting"
    )
    noised_timesteps: int = count("timesteps to which awm and nft noise each finished image")
    nft_beta: float = positive(
        "how firmly nft holds the model to the one that drew the images, against advantages as a "
        "share of advantage_clip"
    )
    method: Method = Field(description="train the whole UNet, or LoRA adapters")
    lora_rank: int = count("rank of the adapters")
    lora_layers: Literal["attention", "all"] = Field(
        description="layers with adapters: attention as published, or residual blocks too"
    )
    epochs: int = count("rounds of sample, reward, advantage, update")
    images_per_prompt: int = count("images of each prompt in an epoch", 2)
    prompts_per_epoch: int | None = Field(ge=1, description="random prompts an epoch; null = all")
    inference_steps: int = count("denoising steps of a sample", 2)
    eta: float = fraction("stochasticity of DDIM; 1 as published", gt=0)
    stochastic_steps: int | None = Field(
        ge=1,
        description="consecutive steps with noise, which are trained, at another place each epoch "
        "between deterministic ones (arXiv 2507.21802); null = all",
    )
    guidance_scales: list[Annotated[float, Field(ge=1)]] = Field(
        min_length=1,
        description="guidance of sampling and training; 1 = none. Several take turns, an epoch "
        "each; evaluations use the last",
    )
    latents_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        description="how trajectories are kept; each action is rounded to it before it is scored"
    )
    direct_steps: int | None = Field(
        ge=1,
        description="ascend the reward's own gradient through this many last steps instead of the "
        "policy gradient (arXiv 2309.17400), for comparison; null = the policy gradient",
    )
    learning_rate: float = positive("AdamW")
    learning_rate_floor: float = fraction("share of it at the end of a cosine; 1 = constant")
    weight_decay: float = fraction("AdamW")
    clip_range: float = positive("clip of the importance ratio (per-dimension log-prob)")
    kl_weight: float = Field(
        ge=0, description="weight of the KL to the policy before training (needs lora); 0 = none"
    )
    anchor: float = Field(
        ge=0,
        description="stage 1's training images, denoised beside each update so that they stay "
        "likely: as a share of its pairs, each with the weight that an advantage of 1 has in awm; "
        "0 = none",
    )
    variety: float = Field(
        ge=0,
        description="weight in the reward of how far an image is from the nearest other one of "
        "its prompt (mean difference of 8 px thumbnails); 0 = none",
    )
    advantages: Literal["running", "group", "per_label"] = Field(
        description="an image's reward against: those remembered of its prompt, as published; "
        "this epoch's of its prompt; the same for each label apart"
    )
    gae_lambda: float | None = Field(
        ge=0,
        le=1,
        description="judge each step by what it changes in the reward of the image it expects, "
        "with this λ of generalized advantage estimation (arXiv 1506.02438); null = every step by "
        "the reward of the finished image, as published",
    )
    advantage_clip: float = positive("largest advantage, in standard deviations")
    updates_per_epoch: int = count("optimizer steps on each epoch's samples, each of whole prompts")
    batch_size: int = count("images in a sampling pass, (image, step) pairs in a training pass")
    decode_batch_size: int | None = Field(
        ge=1, description="latents the autoencoder decodes at once, for memory; null = batch_size"
    )
    background_reward: bool = Field(
        description="judge images while the next are sampled: for rewards off the sampling device"
    )
    gradient_checkpointing: bool = Field(description="less memory for more time")
    channels_last: bool = Field(description="memory layout of the UNet: faster on tensor cores")
    compile: bool = Field(
        description="torch.compile of the UNet: minutes at first, then faster on GPUs"
    )
    timestep_fraction: float = fraction("share of the trainable steps used in an update", gt=0)
    drop_last_steps: int = count("last, least noisy steps that are not trained", 0)
    step_weighting: Literal["none", "output"] = Field(
        description="weight of each step's log-ratio: none, or equal in model-output space"
    )
    max_grad_norm: float = positive("gradient clipping")
    max_failures: int = count("updates in a row that may be skipped because of NaN or infinity")
    rewards: dict[str, float] = Field(
        min_length=1, description="weights of hard, soft, tempered, diagnosis, exact"
    )
    buffer_size: int = count("rewards remembered of each prompt")
    min_count: int = count("rewards a prompt needs for statistics of its own")
    min_std: float = Field(ge=0, description="least spread that a prompt's rewards are divided by")
    ema_decay: float = fraction("decay of the averaged weights, which are kept")
    eval_every: int = count("epochs between evaluations on fixed noise")
    eval_images_per_prompt: int = count("images of each prompt in an evaluation")
    eval_inference_steps: int | None = Field(
        ge=2, description="denoising steps of an evaluation; null = as in training"
    )
    alarm: AlarmConfig
    checkpoint_every: int = count("epochs between checkpoints")
    mixed_precision: Precision = Field(description="autocast of the UNet")

    @model_validator(mode="after")
    def _consistent(self) -> DDPOConfig:
        if self.drop_last_steps >= self.inference_steps:
            raise ValueError("drop_last_steps must be smaller than inference_steps")
        trained = self.inference_steps - self.drop_last_steps
        if self.stochastic_steps is not None and self.stochastic_steps > trained:
            raise ValueError(
                f"stochastic_steps must not exceed the {trained} steps that drop_last_steps leaves"
            )
        if self.direct_steps is not None and self.direct_steps > self.inference_steps:
            raise ValueError("direct_steps must not exceed inference_steps")
        for name in ("anchor", "variety"):
            if self.direct_steps is not None and getattr(self, name):
                raise ValueError(f"{name} is of the policy gradient: with direct_steps set it to 0")
        if self.objective != "ddpo":
            for name in ("stochastic_steps", "direct_steps", "gae_lambda"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is about denoising steps, of which objective {self.objective} "
                        "knows nothing: set it to null"
                    )
        if self.min_count > self.buffer_size:
            raise ValueError("min_count must not exceed buffer_size")
        if self.kl_weight and self.method != "lora":
            raise ValueError("kl_weight needs method: lora, whose adapters can be switched off")
        check_names("rewards", list(self.rewards), REWARD_NAMES)
        return self


class AlignmentConfig(Section):
    images_per_prompt: int = count("images of each prompt and model")
    inference_steps: int = count("denoising steps")
    eta: float = fraction("stochasticity of DDIM")
    guidance_scale: Annotated[float, Field(ge=1)] | None = Field(
        description="of both models; null: each uses the best of guidance_scales"
    )
    guidance_scales: list[Annotated[float, Field(ge=1)]] = Field(
        min_length=1, description="tried with each model"
    )
    adapter_scales: list[Annotated[float, Field(ge=0)]] = Field(
        description="of RL, tried beside 1; it uses the least that is as good as any"
    )
    front_images_per_prompt: int = count("images for choosing the scales, of each pair of them")
    batch_size: int = count("images in one pass")
    bootstrap: int = count("bootstrap resamples for each interval", 100)
    seed: int = count("seed of the noise of the images", 0)
    mixed_precision: Precision = Field(description="autocast of the pipeline")
