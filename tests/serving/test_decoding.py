"""The bounded decoding process gives what ``preprocess`` gives; and what becomes of files that it dies of."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from blades_dist.data.decode import Rejected
from blades_dist.data.sandbox import SandboxError
from blades_dist.detect.preprocess import PreprocessedImage, Unusable, preprocess
from blades_dist.serving.decoding import DecodeProcess
from blades_dist.testing.hostile_bytes import claimed_jpeg, png
from blades_dist.testing.service import encoded, noise

LIMITS = 100_000_000, 5_000_000


@pytest.fixture(scope="module")
def process():
    with DecodeProcess(*LIMITS, seconds=20, mebibytes=512) as opened:
        yield opened


def test_what_it_gives_is_what_prepare_gives(process, detector, photos):
    how, judged = detector.info.preprocessing, 0
    for resize in ("area", "bilinear"):
        own = how.model_copy(update={"resize": resize})
        for data in [*(photo.read_bytes() for photo in photos), noise(1), encoded((99, 99)), b"", b"x", noise(2)[:500]]:
            for whole in (False, True):
                there = process.prepare(data, own, whole)
                try:
                    here = preprocess(data, own, *LIMITS, whole=whole)
                except Rejected as error:
                    assert there == Unusable(error.reason, error.detail)
                    continue
                assert isinstance(there, PreprocessedImage)
                judged += 1
                assert there.crops.dtype == here.crops.dtype and np.array_equal(there.crops, here.crops)
                for a, b in zip(there.faces, here.faces, strict=True):
                    assert a.box == b.box and np.array_equal(a.landmarks, b.landmarks)
                same = set(vars(here)) - {"crops", "faces"}
                assert all(getattr(there, name) == getattr(here, name) for name in same)
    assert judged > 10


def test_it_has_no_torch_and_no_ray():
    told = "import sys, blades_dist.serving.decoding_child; print([m for m in ('torch', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_file_that_takes_too_long(detector):
    slow = claimed_jpeg(8000, 8000, progressive=True)
    with DecodeProcess(*LIMITS, seconds=0.15, mebibytes=512) as process:
        first = process.pid
        assert process.prepare(slow, detector.info.preprocessing, False).reason == "deadline"
        assert process.failures == 1 and process.pid != first
        process._seconds = 60  # a busy machine may need more than that for any file
        assert process.prepare(noise(1), detector.info.preprocessing, True).faces


def test_a_file_that_needs_too_much_memory(process, detector):
    bomb, first = png(9900, 10_000, bytes(10_000 * (1 + 4 * 9900)), 8, 6), process.pid
    found = process.prepare(bomb, detector.info.preprocessing, False)
    assert found.reason == "too_large" and "memory" in found.detail and process.pid == first


@pytest.mark.parametrize(
    ("sent", "times", "reason"),
    [(signal.SIGKILL, 1, None), (signal.SIGKILL, 2, "too_large"), (signal.SIGSEGV, 1, "unreadable")],
)
def test_a_process_that_dies_at_work_is_replaced(process, detector, monkeypatch, sent, times, reason):
    """Killed once, another one gets the file; killed twice, or crashed, it is the file's fault."""
    how, found, seen, before, start = detector.info.preprocessing, [], set(), process.failures, process._start

    def stopped():  # so that it is still at work when it dies
        child = start()
        if len(seen) < times:
            os.kill(child.pid, signal.SIGSTOP)
        return child

    monkeypatch.setattr(process, "_start", stopped)
    os.kill(process.pid, signal.SIGSTOP)
    thread = threading.Thread(target=lambda: found.append(process.prepare(noise(1), how, True)))
    thread.start()
    wait_for(process._lock.locked)
    time.sleep(0.1)
    for _ in range(times):
        wait_for(lambda: process.pid not in (None, *seen))
        seen.add(process.pid)
        os.kill(process.pid, sent)
        with contextlib.suppress(ProcessLookupError):  # a killed one needs no going on
            os.kill(process.pid, signal.SIGCONT)
    thread.join(60)
    assert process.failures == before + times
    assert isinstance(found[0], PreprocessedImage) if reason is None else found[0].reason == reason
    assert process.prepare(noise(1), how, True).faces


def test_a_locator_that_cannot_be_loaded_is_no_file_s_fault(process, detector):
    how = detector.info.preprocessing.model_copy(update={"locator": "yunet"})
    with pytest.raises(SandboxError, match=r"no\.onnx"):
        process.prepare(noise(1), how, False, "no.onnx")
    assert process.prepare(noise(1), detector.info.preprocessing, True).faces


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
