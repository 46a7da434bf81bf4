"""Backbones from Hugging Face names or folders, whole and of the expected kind."""

from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel


def load_pretrained(kind: type[PreTrainedModel], types: Collection[str], name: str, **config: Any) -> PreTrainedModel:
    """``name`` as a ``kind`` with fp32 parameters; ``types`` are the ``model_type`` values that ``kind`` can load.

    Raises:
        OSError: ``name`` names no model that can be read.
        ValueError: it is a model of another kind, or lacks weights (transformers would draw random ones).
    """
    found = AutoConfig.from_pretrained(name).model_type
    if found not in types:
        raise ValueError(f"{name} holds a model of type {found!r}; expected {' or '.join(types)}")
    model, info = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **config)
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights of {kind.__name__}: {', '.join(sorted(info['missing_keys'])[:5])}")
    return model
