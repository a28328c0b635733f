"""Stable Diffusion pipelines: build the small one, or load any, in the diffusers folder format.

The small pipeline is a real :class:`diffusers.StableDiffusionPipeline`; only its autoencoder is a
class of our own. Nothing downstream asks whether it holds this pipeline or Stable Diffusion 1.5.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from derm_rl.io import atomic_dir, loading, quietly
from derm_rl.paths import model_folder


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear autoencoder of square patches: ``patch``² × 3 values to ``latent_channels`` and back.

    Encoder and decoder are one strided convolution each, started from the principal components of
    patches (:meth:`fit`). At the small sizes of the CPU presets a convolutional VAE trained for
    minutes loses every hair; principal components keep them (DESIGN: 99.4 % of the variance).

    Interface of :class:`diffusers.AutoencoderKL`: ``encode(x).latent_dist``, ``decode(z).sample``,
    with x (B, 3, H, W) in [-1, 1] and z (B, C, H / patch, W / patch).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 16,
        patch_size: int = 4,
        sample_size: int = 48,
        scaling_factor: float = 1.0,
        block_out_channels: Sequence[int] = (3, 3, 16),  # StableDiffusionPipeline reads its length
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        shape = dict(kernel_size=patch_size, stride=patch_size)
        self.encoder = nn.Conv2d(in_channels, latent_channels, **shape)
        self.decoder = nn.ConvTranspose2d(latent_channels, in_channels, **shape)

    @classmethod
    def build(cls, patch_size: int, latent_channels: int, sample_size: int) -> PatchAutoencoder:
        levels = int(math.log2(patch_size)) + 1
        return cls(
            latent_channels=latent_channels,
            patch_size=patch_size,
            sample_size=sample_size,
            block_out_channels=[latent_channels] * levels,
        )

    @torch.no_grad()
    def fit(self, images: np.ndarray, whitening: float = 0.5) -> float:
        """Set the weights from principal components of the patches of ``images``.

        Args:
            images: (N, H, W, 3) uint8.
            whitening: latent channel k is divided by std_k ** whitening. 0 leaves hairs in
                channels a hundred times weaker than skin tone, so that only the last, least noisy
                steps of sampling can draw them; 1 makes noise as loud as skin.

        Returns:
            Fraction of the patches' variance kept.
        """
        p, c = self.config.patch_size, self.config.latent_channels
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        patches = nn.functional.unfold(x, p, stride=p).transpose(1, 2).reshape(-1, 3 * p * p)
        mean = patches.mean(0)
        covariance = torch.cov(patches.double().T)
        variance, axes = torch.linalg.eigh(covariance)
        variance, axes = variance.flip(0), axes.flip(1)
        scale = variance[:c].sqrt() ** whitening
        scale = scale * (variance[:c].sqrt() / scale).square().mean().sqrt()  # unit mean variance
        encode, decode = (axes[:, :c] / scale).T.float(), (axes[:, :c] * scale).T.float()
        self.encoder.weight.copy_(encode.reshape(c, 3, p, p))
        self.encoder.bias.copy_(-encode @ mean)
        self.decoder.weight.copy_(decode.reshape(c, 3, p, p))
        # One bias per colour: the mean colour. What else the mean patch holds is next to nothing.
        colour = mean.reshape(3, p * p).mean(1)
        self.decoder.bias.copy_(colour)
        self.encoder.bias.copy_(-encode @ colour.repeat_interleave(p * p))
        return float(variance[:c].sum() / variance.sum())

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        mean = self.encoder(x)
        # Deterministic: the smallest variance the distribution accepts.
        posterior = DiagonalGaussianDistribution(
            torch.cat([mean, torch.full_like(mean, -30.0)], 1), deterministic=True
        )
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)


# The name under which a saved pipeline lists the class: that of the package, which finds it lazily
# (``derm_rl.__getattr__``), so that plain diffusers loads the folder after ``import derm_rl``.
PatchAutoencoder.__module__ = "derm_rl"


def build_tokenizer(texts: Iterable[str], max_length: int) -> CLIPTokenizer:
    """CLIP tokenizer (lower-case BPE, ``</w>``) whose merges are learned from ``texts``."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([t.lower() for t in texts], trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokens = list(learned["vocab"])
    tokens += [t for t in (c + "</w>" for c in alphabet) if t not in learned["vocab"]]
    vocabulary = {token: i for i, token in enumerate([*tokens, start, end])}
    merges = ["#version: 0.2", *(" ".join(m) for m in learned["merges"])]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps(vocabulary))
        merges_file.write_text("\n".join(merges) + "\n")
        return CLIPTokenizer.from_pretrained(
            folder, model_max_length=max_length, trust_remote_code=False
        )


def build(
    images: np.ndarray,
    texts: Iterable[str],
    *,
    patch_size: int,
    latent_channels: int,
    whitening: float,
    unet: dict,
    text_width: int = 64,
    text_layers: int = 2,
    max_length: int = 32,
    prediction_type: str = "v_prediction",
    beta_schedule: str = "squaredcos_cap_v2",
    seed: int = 0,
) -> StableDiffusionPipeline:
    """Untrained small pipeline; only the autoencoder is fitted, to ``images`` (N, S, S, 3) uint8.

    ``unet`` goes to :class:`diffusers.UNet2DConditionModel` (widths, layers, kinds of block).
    """
    size = images.shape[1]
    if size % patch_size:
        raise ValueError(f"image size {size} is not a multiple of patch_size {patch_size}")
    torch.manual_seed(seed)
    vae = PatchAutoencoder.build(patch_size, latent_channels, size)
    vae.fit(images, whitening)
    tokenizer = build_tokenizer(texts, max_length)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            intermediate_size=4 * text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=4,
            max_position_embeddings=max_length,
            projection_dim=text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    network = UNet2DConditionModel(
        sample_size=size // patch_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        cross_attention_dim=text_width,
        **unet,
    )
    # Trailing spacing starts sampling at the noisiest timestep; alpha is 1 after the last step,
    # so that the picture that comes out carries no noise (Lin et al. 2024, arXiv 2305.08891).
    scheduler = DDIMScheduler(
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing spacing; 0 makes the pipeline warn
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load(base: str | Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load a pipeline: a diffusers folder (absolute, or relative to the repository) or a hub id.

    The scheduler becomes DDIM with the timesteps and noise schedule of the loaded one, because
    DDPO needs DDIM's Gaussian steps (arXiv 2305.13301, section 4). The safety checker is left
    out: it was trained on photographs of people and blanks dermoscopic images at random.

    Raises:
        FileError: a file of the folder is damaged; names it.
    """
    folder = model_folder(base)
    if folder is None and (str(base).startswith((".", "/")) or str(base).count("/") != 1):
        raise FileNotFoundError(
            f"pipeline {base!s}: no such folder, and it is no hub id of the form owner/name"
        )
    if folder is not None and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"pipeline {folder}: model_index.json is missing from this folder")
    with loading(folder or base):
        pipe = StableDiffusionPipeline.from_pretrained(
            str(folder or base),
            dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            local_files_only=folder is not None,
            trust_remote_code=False,
        )
        pipe.scheduler = _as_ddim(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _as_ddim(scheduler: SchedulerMixin) -> DDIMScheduler:
    """DDIM with all that ``scheduler`` does, be it said in its file or the default of its class.

    ``from_config`` leaves out what the file does not say, and DDIM's own defaults come in: it clips
    the predicted image to [-1, 1], which latents exceed. A class that knows no ``clip_sample``,
    as PNDM of Stable Diffusion 1.5, does not clip.
    """
    values = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    return DDIMScheduler.from_config({"clip_sample": False} | values)


def fingerprint(pipe: StableDiffusionPipeline) -> str:
    """Hash of all that an image depends on: every weight, the tokenizer's words, the scheduler."""
    found = hashlib.sha256()
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        for name, weight in sorted(part.state_dict().items()):
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    parts = (pipe.vae, pipe.unet, pipe.scheduler)  # hidden entries: of which folder and version
    about = [{k: v for k, v in p.config.items() if k[0] != "_"} for p in parts]
    about += [sorted(pipe.tokenizer.get_vocab().items())]
    found.update(json.dumps(about, sort_keys=True, default=str).encode())
    return found.hexdigest()


def save(pipe: StableDiffusionPipeline, folder: str | Path) -> Path:
    """Write a pipeline in the diffusers folder format, whole or not at all."""
    with atomic_dir(Path(folder)) as temporary, quietly():
        pipe.save_pretrained(temporary, safe_serialization=True)
    return Path(folder)


def interpolate(
    pipe: StableDiffusionPipeline, start: Mapping[str, Tensor], end: Mapping[str, Tensor], by: float
) -> None:
    """Give the UNet the weights start + ``by`` · (end - start), of two of its ``state_dict()``.

    After an adapter was merged, this is what scaling it by ``by`` would have been; and it is
    defined for full training too. Above 1 it goes on where training ended.
    """
    pipe.unet.load_state_dict({k: torch.lerp(start[k], end[k], by) for k in start})


def image_size(pipe: StableDiffusionPipeline) -> int:
    """Side of the square images the pipeline was made for, in pixels."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def set_image_size(pipe: StableDiffusionPipeline, size: int) -> None:
    """Make ``size`` pixels the side of the images from now on; saved with the pipeline.

    UNet and autoencoder are convolutional, so only the default changes. Raises ValueError if the
    UNet cannot halve the latents of this size as often as it must.
    """
    unit = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if size % unit:
        raise ValueError(f"image_size {size}: this pipeline needs a multiple of {unit} pixels")
    pipe.unet.register_to_config(sample_size=size // pipe.vae_scale_factor)
    pipe.vae.register_to_config(sample_size=size)


@torch.no_grad()
def encode_prompts(pipe: StableDiffusionPipeline, texts: Sequence[str]) -> Tensor:
    """Prompt embeddings (len(texts), tokens, width), as the pipeline itself computes them."""
    return pipe.encode_prompt(list(texts), pipe.device, 1, False)[0]


@torch.no_grad()
def encode_images(
    pipe: StableDiffusionPipeline, images: np.ndarray, batch_size: int = 64
) -> Tensor:
    """Scaled latents (N, C, h, w) of uint8 images (N, H, W, 3); the mode of each posterior."""
    latents = []
    for i in range(0, len(images), batch_size):
        x = torch.from_numpy(np.ascontiguousarray(images[i : i + batch_size]))
        x = x.permute(0, 3, 1, 2).to(pipe.device, pipe.vae.dtype) / 127.5 - 1
        latents.append(pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor)
    return torch.cat(latents)


def decode_latents(pipe: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] of scaled latents (B, C, h, w); differentiable."""
    decoded = pipe.vae.decode(latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def reconstruct(pipe: StableDiffusionPipeline, images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) uint8 after one pass through the autoencoder."""
    out = np.empty_like(images)
    for i in range(0, len(images), 64):
        with torch.no_grad():
            x = decode_latents(pipe, encode_images(pipe, images[i : i + 64]))
        out[i : i + 64] = as_uint8(x)
    return out


def as_uint8(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1] as (B, H, W, 3) uint8."""
    return (images * 255).round().permute(0, 2, 3, 1).byte().cpu().numpy()
