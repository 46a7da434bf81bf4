"""What to do when a GPU's memory is full: the run's own levers, not the allocator's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from blades_dist.config import PretrainConfig


class OutOfMemoryError(RuntimeError):
    """A step does not fit into a GPU; the message says what makes it smaller."""


@contextmanager
def explained(config: PretrainConfig) -> Iterator[None]:
    """Has what runs out of GPU memory inside say which keys of ``config`` help, in the order in which to try them.

    Raises:
        OutOfMemoryError: instead of torch's own, which is its cause.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{_first_sentences(error)} To make a step smaller: {'; '.join(levers(config))}"
        ) from error


def levers(config: PretrainConfig) -> list[str]:
    """What is left to try, cheapest first."""
    bilevel, train, model = config.bilevel, config.train, config.model
    learns = bilevel.weighting == "bilevel"
    found = []
    if learns and bilevel.route != "alternating" and not bilevel.reuse_gradient:
        found.append("bilevel.reuse_gradient=true (one graph is kept instead of two; lambda acts one step later)")
    if train.precision != "bf16":
        found.append("train.precision=bf16 (activations take half)")
    if learns:
        found.append("a smaller bilevel.val_batch")
    if not model.activation_checkpointing and bilevel.route != "alternating" and not model.compile:
        found.append("model.activation_checkpointing=true (activations are computed again in the backward)")
    found.append(f"a train.batch_size below {train.batch_size}, with train.accumulate for the same batch a step")
    return found


def _first_sentences(error: BaseException) -> str:
    """torch's message up to its advice about the allocator, which is set already."""
    return f"{str(error).partition(' If reserved but')[0].strip().rstrip('.')}."
