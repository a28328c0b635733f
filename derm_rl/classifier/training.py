"""Training of a multi-label classifier: one loop, early stopping, checkpoint after every epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from derm_rl import dependencies, training
from derm_rl.classifier import calibration
from derm_rl.classifier.augment import augment
from derm_rl.classifier.backbones import last_layer
from derm_rl.classifier.model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Beside,
    LabelClassifier,
    as_tensor,
    build,
    read_beside,
)
from derm_rl.classifier.model import load as load_classifier
from derm_rl.errors import FileError
from derm_rl.io import passing, read_json, set_aside
from derm_rl.paths import model_folder

if TYPE_CHECKING:
    from derm_rl.settings import Backbone, ClassifierConfig

USED = (
    "epochs", "batch_size", "learning_rate", "weight_decay", "patience", "augment",
    "frozen_batchnorm",
)  # fmt: skip


def train(
    images: np.ndarray,
    labels: np.ndarray,
    lesion_ids: Sequence[str],
    label_names: Sequence[str],
    validation: np.ndarray,
    backbone: Backbone,
    settings: ClassifierConfig,
    seed: int,
    folder: str | Path,
    progress: bool = False,
    callback: Callable[[dict[str, Any]], None] | None = None,
    confounder: np.ndarray | None = None,
) -> LabelClassifier:
    """Train on ``images[~validation]``, keep the weights of the best validation loss, calibrate.

    Class-balanced binary cross-entropy, AdamW, cosine learning rate, flips as in the paper (arXiv
    2503.15784), further augmentation as :mod:`derm_rl.classifier.augment` says. Every epoch ends
    in a checkpoint ``<folder>.checkpoint.pt``, from which a killed training continues bit for bit;
    a finished one with the same settings and data is loaded, not repeated, unless it is damaged:
    then it is set aside.

    Args:
        images: (N, S, S, 3) uint8, memory-mapped if need be. labels: (N, L) of 0 and 1.
        lesion_ids: lesion of each image; no lesion may be in both parts.
        validation: (N,) bool, images for early stopping and calibration.
        backbone, settings: sections of the preset.
        folder: where the classifier goes, with ``history.csv`` (one row per epoch) and its card.
        callback: called with each new row of the history.
        confounder: (N,) bool, what must not pay as a sign of any label: images are weighted such
            that it says nothing of them, :func:`derm_rl.classifier.calibration.independent`.

    Raises:
        ValueError: shapes disagree, a lesion is in both parts, or a label does not vary.
    """
    folder, labels = Path(folder), np.asarray(labels, np.float32)
    validation = np.asarray(validation, bool)
    _check(images, labels, lesion_ids, label_names, validation)
    each = None
    if confounder is not None:
        each = calibration.independent(labels, np.asarray(confounder, bool), ~validation)
    belongs_to = _identity(images, labels, label_names, validation, each, backbone, settings, seed)
    if _finished(folder) == belongs_to:
        try:
            return load_classifier(folder)
        except (FileError, FileNotFoundError) as error:
            if error.__cause__ and passing(error.__cause__):
                raise
            set_aside(folder, "torn", str(error))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight, bias = map(torch.from_numpy, calibration.positive_weight(labels[~validation]))
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state as it was
        torch.manual_seed(seed)
        normalization = _normalization(backbone, images, ~validation)
        model = build(backbone, label_names, images.shape[1], *normalization).to(device)
        _begin_with_its_logits(model, backbone, bias)
        history = _fit(model, images, labels, validation, weight, each, settings, seed, folder,
                       belongs_to, progress, callback)  # fmt: skip

    z = _raw(model, images, np.flatnonzero(validation), settings.batch_size)
    of = None if each is None else each[validation]
    model.bias.copy_(bias)
    z = z + model.bias.cpu().numpy()
    model.temperature.copy_(
        torch.from_numpy(calibration.fit_temperature(z, labels[validation], of))
    )
    model.save(
        folder,
        card={
            "architecture": model.network.config.model_type,
            "pretrained": backbone.pretrained,
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "training_images": int((~validation).sum()),
            "validation_images": int(validation.sum()),
            "positives": dict(zip(label_names, labels[~validation].sum(0).tolist(), strict=True)),
            "seed": seed,
            "belongs_to": belongs_to,
            "training_lesions": sorted({str(lesion) for lesion in lesion_ids}),
        },
        history=history,
    )
    training.discard_checkpoint(_checkpoint(folder))
    return load_classifier(folder)  # bit for bit what another process will load


def _fit(
    model: LabelClassifier,
    images: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    weight: Tensor,
    each: np.ndarray | None,
    settings: ClassifierConfig,
    seed: int,
    folder: Path,
    belongs_to: str,
    progress: bool,
    callback: Callable[[dict[str, Any]], None] | None,
) -> pd.DataFrame:
    """The loop. Leaves the best weights in ``model``; returns the history."""
    weight = weight.to(model.device)

    def loss_of(z: Tensor, rows: np.ndarray) -> Tensor:
        y, of = (None if part is None else torch.from_numpy(part[rows]).to(model.device)
                 for part in (labels, each))  # fmt: skip
        return calibration.loss(z.to(model.device), y, weight, of)

    train_rows, validation_rows = np.flatnonzero(~validation), np.flatnonzero(validation)
    # β₂ 0.99, not 0.999: the second moments must settle within a thousand updates.
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
    )
    batches = -(-len(train_rows) // settings.batch_size)
    total = settings.epochs * batches
    rows: list[dict[str, Any]] = []
    best, best_state = float("inf"), copy.deepcopy(model.network.state_dict())
    layout = _layout(model)
    model.to(memory_format=layout)
    needs = ("network", "optimizer", "history", "best", "best_state")
    saved = training.load_checkpoint(_checkpoint(folder), belongs_to, needs)
    if saved is not None:
        model.network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        rows, best, best_state = saved["history"], saved["best"], saved["best_state"]

    bar = tqdm(total=total, initial=len(rows) * batches, desc=folder.name, mininterval=1,
               disable=not progress)  # fmt: skip
    for epoch in range(len(rows), settings.epochs):
        if _since_best(rows) >= settings.patience:
            break
        started, losses = time.monotonic(), []
        # Each epoch draws from generators of its own, so a checkpoint holds no random state. The
        # global one is for dropout and stochastic depth inside the network.
        generator = training.generator("classifier", seed, epoch)
        torch.manual_seed(generator.initial_seed())
        order = train_rows[torch.randperm(len(train_rows), generator=generator).numpy()]
        model.train()
        if settings.frozen_batchnorm:
            _keep_statistics(model)
        for i in range(batches):
            rate = training.cosine_learning_rate(
                epoch * batches + i, total, settings.learning_rate, total // 20, 0.0
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = np.sort(order[i * settings.batch_size : (i + 1) * settings.batch_size])
            x = as_tensor(images[batch])
            x = augment(x, generator) if settings.augment else x
            x = x.contiguous(memory_format=layout)
            loss = loss_of(model.raw_logits(x), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            bar.update()
        z = _raw(model, images, validation_rows, settings.batch_size)
        value = loss_of(torch.from_numpy(z), validation_rows).item()
        if value < best:
            best, best_state = value, copy.deepcopy(model.network.state_dict())
        rows.append(
            {
                "epoch": epoch + 1,
                "learning_rate": rate,
                "train_loss": float(np.mean(losses)),
                "validation_loss": value,
                "seconds": time.monotonic() - started,
            }
        )
        bar.set_postfix(validation=f"{value:.3f}", best=f"{best:.3f}")
        state = {"network": model.network.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"history": rows, "best": best, "best_state": best_state}
        training.save_checkpoint(_checkpoint(folder), state, belongs_to)
        if callback:
            callback(rows[-1])
    bar.close()
    model.network.load_state_dict(best_state)
    model.eval()
    return pd.DataFrame(rows)


def _layout(model: nn.Module) -> torch.memory_format:
    """Channels last, the same but a third faster on CPUs, where that is safe.

    The backward pass of a 1×1 convolution with a stride and fewer input channels than a CPU's
    vector holds (16) writes past its memory in oneDNN: uxlfoundation/oneDNN, issue 6035.
    """
    narrow = any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels // part.groups < 16
        for part in model.modules()
    )
    return torch.contiguous_format if narrow else torch.channels_last


def _since_best(rows: list[dict[str, Any]]) -> int:
    """Epochs since the least validation loss."""
    if not rows:
        return 0
    return len(rows) - 1 - int(np.argmin([r["validation_loss"] for r in rows]))


def _finished(folder: Path) -> str | None:
    """What the classifier in a folder belongs to; None if there is none, or it does not say."""
    try:
        card = read_json(folder / "card.json")
    except (FileNotFoundError, ValueError):
        return None
    return card.get("belongs_to") if isinstance(card, dict) else None


def _checkpoint(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.checkpoint.pt")


@torch.no_grad()
def _raw(
    model: LabelClassifier, images: np.ndarray, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """Uncalibrated outputs (len(rows), L) float32."""
    model.eval()
    parts: list[Tensor] = [
        model.raw_logits(as_tensor(images[rows[i : i + batch_size]])).float().cpu()
        for i in range(0, len(rows), batch_size)
    ]
    return torch.cat(parts).numpy()


def _calibration_of(backbone: Backbone) -> Beside | None:
    """What lies beside a pretrained network that is a classifier of ours, else None."""
    folder = model_folder(backbone.pretrained) if backbone.pretrained else None
    return read_beside(folder) if folder and (folder / "calibration.json").is_file() else None


def _begin_with_its_logits(model: LabelClassifier, backbone: Backbone, bias: Tensor) -> None:
    """Let a network that was a classifier of the same labels begin with that one's logits.

    Part of the balance of rare labels is a bias outside of the network, which depends on how many
    there are. What it is here and was not there is taken off the last layer.
    """
    before = _calibration_of(backbone)
    if before is None or before.label_names != model.label_names:
        return
    own = last_layer(model.network).bias
    with torch.no_grad():
        own += (torch.tensor(before.bias) - bias).to(own)


def _keep_statistics(model: LabelClassifier) -> None:
    """Leave the running statistics of batch normalization as they are.

    They are the means over training images, in which an artifact may be rare. Of generated images
    every other shows it: with statistics that took it for an exception, two classifiers that agree
    on photographs disagree there, above all on ink.
    """
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def _normalization(
    backbone: Backbone, images: np.ndarray, rows: np.ndarray
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that the network expects: of its own images, or of ours."""
    if not backbone.pretrained:
        return _statistics(images, rows)
    if beside := _calibration_of(backbone):
        return beside.mean, beside.std
    return IMAGENET_MEAN, IMAGENET_STD


def _statistics(images: np.ndarray, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], from up to 1,000 images."""
    some = np.flatnonzero(rows)[:: max(1, int(rows.sum()) // 1000)]
    x = np.asarray(images[some], np.float64) / 255
    return x.mean((0, 1, 2)).tolist(), (x.std((0, 1, 2)) + 1e-6).tolist()


def _check(
    images: np.ndarray,
    labels: np.ndarray,
    lesion_ids: Sequence[str],
    label_names: Sequence[str],
    validation: np.ndarray,
) -> None:
    n = len(images)
    if labels.shape != (n, len(label_names)) or len(lesion_ids) != n or len(validation) != n:
        raise ValueError(
            f"{n} images and {len(label_names)} label names, but labels of shape {labels.shape}, "
            f"{len(lesion_ids)} lesion ids and {len(validation)} validation flags"
        )
    if validation.all() or not validation.any():
        raise ValueError(f"{int(validation.sum())} of {n} images are for validation; need both")
    lesions = pd.Series(list(lesion_ids), dtype="string")
    shared = set(lesions[validation].dropna()) & set(lesions[~validation].dropna())
    if shared:
        raise ValueError(
            f"{len(shared)} lesions are in training and validation, such as {sorted(shared)[0]!r}; "
            "split by lesion (derm_rl.data.splits)"
        )
    positives = labels[~validation].sum(0)
    for name, count in zip(label_names, positives, strict=True):
        if not 0 < count < (~validation).sum():
            raise ValueError(
                f"label {name!r}: {int(count)} of {int((~validation).sum())} training images show "
                "it, nothing to learn; use more images, or leave it out (data.min_positives)"
            )


def _identity(
    images: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    validation: np.ndarray,
    each: np.ndarray | None,
    backbone: Backbone,
    settings: ClassifierConfig,
    seed: int,
) -> str:
    """What a checkpoint or a finished classifier belongs to."""
    fields = ("architecture", "widths", "depths", "pretrained")
    pretrained = model_folder(backbone.pretrained) if backbone.pretrained else None
    return training.identity(
        "derm_rl.classifier.training",
        data=training.hash_of(images, labels, validation, *([] if each is None else [each])),
        shape=images.shape,
        start=dependencies.files_under(pretrained) if pretrained else None,
        labels=list(label_names),
        backbone={f: getattr(backbone, f) for f in fields},
        settings={f: getattr(settings, f) for f in USED},
        seed=seed,
    )
