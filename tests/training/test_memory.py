"""A step that does not fit says which keys make it smaller."""

import pytest
import torch

from blades_dist.config import PretrainConfig
from blades_dist.training.memory import OutOfMemoryError, explained, levers

BASE = {"data": {"shards": "s"}, "train": {"batch_size": 48}}
CASES = [
    ({}, ["bilevel.reuse_gradient", "train.precision", "bilevel.val_batch", "model.activation_ch", "train.batch_size"]),
    ({"bilevel": {"route": "alternating"}, "train": {"precision": "bf16"}}, ["bilevel.val_batch", "train.batch_size"]),
    ({"bilevel": {"weighting": "equal"}, "model": {"activation_checkpointing": True}}, ["train.prec", "train.batch"]),
    (
        {"bilevel": {"reuse_gradient": True}, "model": {"compile": True}},
        ["train.precision", "bilevel.val_batch", "train.batch_size"],
    ),
]


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_only_what_is_left_to_try_is_named(values, expected):
    found = levers(PretrainConfig.model_validate(BASE | values))
    assert len(found) == len(expected)
    assert all(key in text for key, text in zip(expected, found, strict=True))


def test_the_message_keeps_torchs_figures_and_drops_its_advice():
    said = "CUDA out of memory. Tried to allocate 2 GiB. If reserved but unallocated memory is large try ..."
    with pytest.raises(OutOfMemoryError) as caught, explained(PretrainConfig.model_validate(BASE)):
        raise torch.OutOfMemoryError(said)
    text = str(caught.value)
    assert text.startswith(
        "CUDA out of memory. Tried to allocate 2 GiB. To make a step smaller: bilevel.reuse_gradient"
    )
    assert "If reserved" not in text and isinstance(caught.value.__cause__, torch.OutOfMemoryError)
