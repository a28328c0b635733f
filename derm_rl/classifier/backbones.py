"""The networks of the classifiers: transformers vision backbones, pretrained or from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from derm_rl.errors import FileError
from derm_rl.io import loading
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


def load_network(model: str | Path, local: bool, **settings: Any) -> PreTrainedModel:
    """The network of a transformers folder or hub id; with ``settings``, its head may be a new one.

    Transformers prints a table of what it could not load, and goes on with random weights.

    Raises:
        FileError: it cannot be loaded, or lacks weights other than the head's.
    """
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with loading(model):
            network, found = AutoModelForImageClassification.from_pretrained(
                str(model),
                local_files_only=local,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **settings,
            )
    finally:
        logging.set_verbosity(verbosity)
    lacking = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if settings:
        head = last_layer(network)
        name = next(name for name, module in network.named_modules() if module is head)
        lacking = {key for key in lacking if not key.startswith(f"{name}.")}
    if lacking:
        raise FileError(
            f"classifier {model}: {len(lacking)} weights of the {network.config.model_type} are "
            f"missing or of another shape, such as {min(lacking)}; its weights and config.json do "
            "not belong together: restore the folder, or train it again"
        )
    return network


def _pretrained(backbone: Backbone, settings: dict[str, Any]) -> PreTrainedModel:
    """The network of a folder or hub id, with a fresh head where the labels differ."""
    from transformers import AutoConfig

    folder = model_folder(backbone.pretrained)
    model = load_network(folder or backbone.pretrained, folder is not None, **settings)
    if model.config.model_type != MODEL_TYPES[backbone.architecture]:
        raise ValueError(
            f"pretrained classifier {backbone.pretrained} is a {model.config.model_type}, "
            f"but the preset asks for architecture {backbone.architecture!r}"
        )
    before = AutoConfig.from_pretrained(
        str(folder or backbone.pretrained),
        local_files_only=folder is not None,
        trust_remote_code=False,
    )
    if before.id2label != settings["id2label"]:  # as many labels, but others
        last_layer(model).reset_parameters()
    return model
