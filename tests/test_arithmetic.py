"""In which arithmetic things are computed, and that what shares a batch does not matter."""

import threading

import pytest
import torch

from blades_dist import arithmetic
from blades_dist.arithmetic import ieee_fp32, in_blocks, set_precision
from blades_dist.manipulate import manipulate
from blades_dist.models.frozen import FrozenEncoder
from blades_dist.testing.toy_detector import SIZE, tiny_encoder
from blades_dist.training.device_part import precise
from tests.models.small import small_model


@pytest.fixture(autouse=True)
def _as_before():
    before = arithmetic._switches()
    yield
    arithmetic._switch(before)


def _tf32():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_a_precision_sets_both_switches(precision, tf32):
    for stale in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = stale
        set_precision(precision)
        assert _tf32() == (tf32, tf32)


def test_ieee_fp32_is_put_back_when_the_last_thread_leaves():
    set_precision("tf32")
    torch.backends.cudnn.benchmark = True
    entered, leave = threading.Event(), threading.Event()

    def other():
        with ieee_fp32():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with ieee_fp32():
        thread.start()
        entered.wait(60)
        with ieee_fp32():
            assert _tf32() == (False, False)
            assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert _tf32() == (False, False), "the other thread is still inside"
    leave.set()
    thread.join()
    assert _tf32() == (True, True)
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic


class _Inside(torch.nn.Module):
    """Notes the switches at each forward."""

    def __init__(self, module):
        super().__init__()
        self.module, self.seen = module, []

    def forward(self, *inputs):
        self.seen.append(_tf32())
        return self.module(*inputs)


def test_what_is_computed_in_fp32_proper_whatever_the_process_is_set_to(monkeypatch):
    set_precision("tf32")
    encoder = tiny_encoder()
    encoder.image = _Inside(encoder.image)
    encoder.features(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    assert encoder.image.seen == [(False, False)]
    with precise(small_model(), True):
        assert _tf32() == (False, False)
    seen = []
    monkeypatch.setattr("blades_dist.manipulate._boxes", lambda *_: seen.append(_tf32()) or [])
    from blades_dist.config import ManipulateConfig
    from blades_dist.manipulate import draw

    decisions = draw(2, ManipulateConfig(photographic_share=1.0), torch.Generator())
    manipulate(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 2), decisions)
    assert seen == [(False, False)] and _tf32() == (True, True)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 11])
def test_blocks_are_of_one_size_and_rows_keep_their_places(rows):
    sizes = []

    def compute(part):
        sizes.append(len(part))
        return part.flatten(1).sum(1, keepdim=True) + 1

    given = torch.arange(rows * 6.0).reshape(rows, 2, 3)
    found = in_blocks(compute, given, 4)
    assert torch.equal(found, given.flatten(1).sum(1, keepdim=True) + 1)
    assert sizes == ([4] * -(-rows // 4) if rows else [0])


def test_in_blocks_features_and_logits_do_not_depend_on_company(monkeypatch):
    """As on a GPU, where the encoder takes rows in blocks; on a CPU a detector gives it one face at a time."""
    monkeypatch.setattr(FrozenEncoder, "_block", property(lambda _: 4))
    encoder = tiny_encoder()
    images = torch.randint(0, 256, (11, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = encoder.features(images)
    logits = encoder.logits(together)
    for i in range(len(images)):
        alone = encoder.features(images[i : i + 1])
        assert torch.equal(alone[0], together[i]) and torch.equal(encoder.logits(alone)[0], logits[i])
    assert encoder.features(images[:0]).shape == (0, 16)


def test_a_process_without_its_gpu_says_what_to_look_at(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"sees none: look at the driver .* 580 .* CUDA_VISIBLE_DEVICES"):
        arithmetic.cuda()
