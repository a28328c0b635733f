"""The multi-label classifier: a transformers vision backbone with one sigmoid per label.

Any backbone of transformers works the same way: the network is saved and loaded as a plain
transformers folder (``config.json``, ``model.safetensors``); what is ours (label names, image
size, normalization, calibration) stands beside it in ``calibration.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from derm_rl.classifier.backbones import load_network, network
from derm_rl.errors import FileError
from derm_rl.io import atomic_dir, quietly, read_mapping, write_csv, write_json

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from derm_rl.settings import Backbone

# Channel statistics of ImageNet: what every published backbone was trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(
    backbone: Backbone,
    label_names: Sequence[str],
    image_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> LabelClassifier:
    """Untrained classifier for square images of ``image_size`` pixels; weights from torch's RNG."""
    # The stems of ResNet and RegNet were made for 224 px: halved two or three times before the
    # first block, hairs of a 48 px image merge with their surroundings before any filter saw them.
    # Shown the image twice as large, the first convolution works at the true resolution.
    halving = backbone.architecture in ("resnet", "regnet")
    enlarge = 2 if halving and image_size < 128 else 1
    return LabelClassifier(
        network(backbone, label_names), label_names, image_size, image_size * enlarge, mean, std
    )


class LabelClassifier(nn.Module):
    """Independent probabilities for several labels of an image.

    With the raw output z of the network for one label,

        logit = (z + bias) / temperature,     probability = sigmoid(logit)

    where ``bias`` and ``temperature`` come from :mod:`derm_rl.classifier.calibration`.
    **Probabilities refer to a balanced prior**: to images of which half show the label, as is true
    of the prompts, and not to the share of the label in the training data. So 0.5 is the threshold
    at which both kinds of error weigh the same.

    Args:
        network: transformers image classifier with one output per label.
        label_names: names of the L labels, in order.
        image_size: side of the images it was trained on, in pixels.
        input_size: side at which the network sees them, in pixels.
        mean, std: normalization of the three channels, of values in [0, 1].
    """

    def __init__(
        self,
        network: PreTrainedModel,
        label_names: Sequence[str],
        image_size: int,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network = network
        self.label_names = list(label_names)
        self.image_size, self.input_size = int(image_size), int(input_size)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("bias", torch.zeros(len(self.label_names)))
        self.register_buffer("temperature", torch.ones(len(self.label_names)))
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def pixel_values(self, images: Tensor) -> Tensor:
        """What the network sees of ``images`` (B, 3, H, W) in [0, 1]; ``images`` stay untouched."""
        x = images.to(self.device, torch.float32)
        # First to the size of the training images, so that larger ones lose the detail that the
        # classifier never saw, then to the size of the network's input.
        for size in (self.image_size, self.input_size):
            if x.shape[-2:] != (size, size):
                x = nn.functional.interpolate(
                    x, (size, size), mode="bilinear", antialias=True, align_corners=False
                )
        return (x - self.mean) / self.std

    def raw_logits(self, images: Tensor) -> Tensor:
        """Uncalibrated outputs (B, L) of images (B, 3, H, W) in [0, 1]; differentiable."""
        return self.network(pixel_values=self.pixel_values(images)).logits

    def logits(self, images: Tensor) -> Tensor:
        """Calibrated logits (B, L) of images (B, 3, H, W) in [0, 1]; differentiable."""
        return (self.raw_logits(images).float() + self.bias) / self.temperature

    forward = logits

    def predict(self, images: np.ndarray | Tensor, batch_size: int = 256) -> np.ndarray:
        """Probabilities (N, L) float32 under a balanced prior, on any number of images.

        Args:
            images: uint8 array (N, H, W, 3), memory-mapped if need be, or float tensor
                (N, 3, H, W) in [0, 1]. Never modified.
            batch_size: images per pass through the network.

        Raises:
            TypeError, ValueError: another type, shape or range, such as images in [-1, 1].
        """
        none = np.empty((0, len(self.label_names)), np.float32)
        parts = self._in_batches(lambda x: self.logits(x).sigmoid(), images, batch_size)
        return np.concatenate([none, *parts])

    def features(self, images: np.ndarray | Tensor, batch_size: int = 256) -> np.ndarray:
        """Last features (N, C) float32, averaged over space; takes what :meth:`predict` does."""

        def body(x: Tensor) -> Tensor:
            found = self.network.base_model(pixel_values=self.pixel_values(x))
            return found.last_hidden_state.mean((2, 3))

        return np.concatenate(self._in_batches(body, images, batch_size))

    @torch.no_grad()
    def _in_batches(
        self, function: Callable[[Tensor], Tensor], images: np.ndarray | Tensor, batch_size: int
    ) -> list[np.ndarray]:
        """``function`` of every batch, checked, by the network as it is used after training."""
        was_training = self.training
        self.eval()
        parts = [
            function(as_tensor(images[i : i + batch_size])).cpu().numpy()
            for i in range(0, len(images), batch_size)
        ]
        self.train(was_training)
        return parts

    def save(
        self,
        folder: str | Path,
        card: dict[str, Any] | None = None,
        history: pd.DataFrame | None = None,
    ) -> Path:
        """Write the transformers folder and ``calibration.json``; if given, card and history."""
        with atomic_dir(Path(folder)) as temporary:
            temporary = Path(temporary)
            with quietly():
                self.network.save_pretrained(temporary)
            write_json(temporary / "calibration.json", self._beside())
            if card is not None:
                write_json(temporary / "card.json", card)
                (temporary / "README.md").write_text(_readme(self, card), encoding="utf-8")
            if history is not None:
                write_csv(temporary / "history.csv", history)
        return Path(folder)

    def _beside(self) -> dict[str, Any]:
        return {
            "label_names": self.label_names,
            "image_size": self.image_size,
            "input_size": self.input_size,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "bias": self.bias.tolist(),
            "temperature": self.temperature.tolist(),
        }


def as_tensor(images: np.ndarray | Tensor) -> Tensor:
    """Float (B, 3, H, W) in [0, 1] of uint8 (B, H, W, 3), or of such a tensor, which is checked."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                "images as an array must be uint8 of shape (N, H, W, 3), "
                f"got {images.dtype} of shape {images.shape}"
            )
        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a numpy array or a tensor, got {type(images).__name__}")
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            "images as a tensor must be float of shape (N, 3, H, W), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if len(images):
        low, high = images.detach().aminmax()
        if low < -1e-3 or high > 1 + 1e-3 or not torch.isfinite(high - low):
            raise ValueError(
                f"images as a tensor must lie in [0, 1], got values from {low:.3g} to {high:.3g}"
            )
    return images


def load(folder: str | Path, device: torch.device | str = "cpu") -> LabelClassifier:
    """Load a classifier that :meth:`LabelClassifier.save` wrote, ready to predict.

    Raises:
        FileError: a file in it is damaged, or lacks something; names it.
    """
    folder = Path(folder)
    if not (folder / "calibration.json").is_file():
        raise FileNotFoundError(f"classifier {folder}: this folder has no calibration.json")
    beside = read_beside(folder)
    backbone = load_network(folder, local=True)
    if backbone.config.num_labels != len(beside.label_names):
        raise FileError(
            f"classifier {folder}: the network has {backbone.config.num_labels} outputs, but "
            f"calibration.json names {len(beside.label_names)} labels"
        )
    model = LabelClassifier(
        backbone,
        beside.label_names,
        beside.image_size,
        beside.input_size,
        beside.mean,
        beside.std,
    )
    model.bias.copy_(torch.tensor(beside.bias))
    model.temperature.copy_(torch.tensor(beside.temperature))
    return model.to(device).requires_grad_(False)


class Beside(BaseModel):
    """What ``calibration.json`` must hold."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    label_names: list[str] = Field(min_length=1)
    image_size: int = Field(ge=1)
    input_size: int = Field(ge=1)
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[float] = Field(min_length=3, max_length=3)
    bias: list[float]
    temperature: list[Annotated[float, Field(gt=0)]]


def read_beside(folder: Path) -> Beside:
    """The checked ``calibration.json`` of a classifier's folder.

    Raises:
        FileError: it cannot be read, or lacks something.
    """
    file = folder / "calibration.json"
    try:
        beside = Beside.model_validate(read_mapping(file))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise FileError(
            f"{file}: {key}: {first['msg']}; restore the file, or train the classifier again"
        ) from None
    for key in ("bias", "temperature"):
        if len(getattr(beside, key)) != len(beside.label_names):
            raise FileError(
                f"{file}: {key} has {len(getattr(beside, key))} values for "
                f"{len(beside.label_names)} label_names; restore the file, or train again"
            )
    return beside


def _readme(model: LabelClassifier, card: dict[str, Any]) -> str:
    facts = "\n".join(
        f"- {key.replace('_', ' ')}: {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in card.items()
        if key != "training_lesions"
    )
    return f"""---
library_name: transformers
pipeline_tag: image-classification
---

# Multi-label dermoscopy classifier ({model.network.config.model_type})

Independent probabilities for {", ".join(model.label_names)}. Written by `derm_rl.classifier`; load
it with `derm_rl.classifier.load(folder)`, which also reads `calibration.json` (normalization,
bias, temperature). Probabilities refer to a balanced prior. The lesions it was trained on are
listed in `card.json` under `training_lesions`.

Research only: it is a reward or a yardstick for generated images, not for diagnosis.

{facts}
"""
