"""The networks of the classifiers: transformers vision backbones, pretrained or from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from derm_rl.paths import model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from derm_rl.settings import Backbone

MODEL_TYPES = {
    "resnet": "resnet",
    "regnet": "regnet",
    "convnext": "convnext",
    "efficientnet-b0": "efficientnet",
}


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bar of transformers for reading or writing a file of a few megabytes."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def network(backbone: Backbone, label_names: Sequence[str]) -> PreTrainedModel:
    """Image classifier with one output per label; fresh weights come from torch's global RNG."""
    from transformers import AutoModelForImageClassification

    if backbone.architecture not in MODEL_TYPES:
        raise ValueError(
            f"classifier architecture {backbone.architecture!r} is not known; "
            f"expected one of {', '.join(MODEL_TYPES)}"
        )
    settings = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
        "problem_type": "multi_label_classification",
    }
    if backbone.architecture == "efficientnet-b0":
        # Transformers hands TensorFlow's momentum (0.99, the weight of the old value) to PyTorch,
        # where it is the weight of the new one: running statistics of the last batch only.
        settings["batch_norm_momentum"] = 0.1
    if backbone.pretrained:
        return _pretrained(backbone, settings)
    return AutoModelForImageClassification.from_config(_config(backbone, settings))


def last_layer(network: PreTrainedModel) -> torch.nn.Linear:
    """The layer that gives one output per label."""
    return [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]


def _config(backbone: Backbone, settings: dict[str, Any]) -> Any:
    from transformers import ConvNextConfig, EfficientNetConfig, RegNetConfig, ResNetConfig

    widths, depths = list(backbone.widths), list(backbone.depths)
    if backbone.architecture == "resnet":
        return ResNetConfig(
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=depths,
            layer_type="basic",
            **settings,
        )
    if backbone.architecture == "regnet":
        # RegNetY (arXiv 2003.13678): grouped convolutions, squeeze and excitation, no max-pooling.
        return RegNetConfig(
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=depths,
            groups_width=16,
            layer_type="y",
            **settings,
        )
    if backbone.architecture == "convnext":
        # Patches of 2 px, not 4, no layer scale (1, not 1e-6) and larger initial weights: made for
        # images of some 50 px and a thousand updates, not for 300 epochs of ImageNet.
        return ConvNextConfig(
            patch_size=2,
            num_stages=len(widths),
            hidden_sizes=widths,
            depths=depths,
            layer_scale_init_value=1.0,
            initializer_range=0.1,
            **settings,
        )
    # B0 of arXiv 1905.11946; the defaults of EfficientNetConfig are B7.
    return EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=224,
        dropout_rate=0.2,
        hidden_dim=1280,
        **settings,
    )


def _pretrained(backbone: Backbone, settings: dict[str, Any]) -> PreTrainedModel:
    """The network of a folder or hub id, with a fresh head where the labels differ."""
    from transformers import AutoConfig, AutoModelForImageClassification

    folder = model_folder(backbone.pretrained)
    model = AutoModelForImageClassification.from_pretrained(
        str(folder or backbone.pretrained),
        ignore_mismatched_sizes=True,
        local_files_only=folder is not None,
        dtype=torch.float32,
        **settings,
    )
    if model.config.model_type != MODEL_TYPES[backbone.architecture]:
        raise ValueError(
            f"pretrained classifier {backbone.pretrained} is a {model.config.model_type}, "
            f"but the preset asks for architecture {backbone.architecture!r}"
        )
    before = AutoConfig.from_pretrained(
        str(folder or backbone.pretrained), local_files_only=folder is not None
    )
    if before.id2label != settings["id2label"]:  # as many labels, but others
        last_layer(model).reset_parameters()
    return model
