"""The bounded process: the same rows as without it, and what happens when a photo takes it down."""

import array
import contextlib
import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from blades_dist.data.crops import Outcome, process_photo
from blades_dist.data.sandbox import PhotoProcess, SandboxError
from blades_dist.data.sources.base import Annotations
from blades_dist.tasks import TAGS
from blades_dist.testing.hostile_bytes import claimed_jpeg, png
from tests.data.conftest import encoded, exif_of, jpeg_of
from tests.data.photos import configured, face, peak_mebibytes, photo_of

GIVEN = Annotations(faces=[face(10.1, 8, 70, 70), face(2, 3, 20, 20)], levels={"iso": 2})


def outcome_of(process: PhotoProcess, data: bytes, given: Annotations = GIVEN) -> Outcome:
    return process.process(photo_of(data), data, given)


def waiting_for(process: PhotoProcess) -> int:
    """Bytes that the child was sent and has not read."""
    assert process._child is not None and process._child.stdin is not None
    found = array.array("i", [0])
    fcntl.ioctl(process._child.stdin, termios.FIONREAD, found)
    return found[0]


def slow_jpeg() -> bytes:
    """Half a second and more of work, of 350 KB: a progressive file of 64 megapixels."""
    return claimed_jpeg(8000, 8000, progressive=True)


@pytest.fixture(scope="module")
def process() -> PhotoProcess:
    with PhotoProcess(configured()) as opened:
        yield opened


def test_outcomes_are_those_of_the_own_process(process: PhotoProcess) -> None:
    said = Annotations(faces=GIVEN.faces, frame=(96.0, 48.0), exif=dict.fromkeys(TAGS) | {"iso": 1 / 3, "make": "Sony"})
    for data in (jpeg_of(1), jpeg_of(2), jpeg_of(3)[:900], b"", jpeg_of(4, exif=False)):
        for given in (GIVEN, said, Annotations(), Annotations(faces=[])):
            here, there = process_photo(photo_of(data), data, given, configured()), outcome_of(process, data, given)
            assert there.rows.equals(here.rows)
            for name in ("path", "faces", "rejected", "fingerprint", "pixels"):
                assert getattr(there, name) == getattr(here, name)
            assert [f.box for f in there.found] == [f.box for f in here.found]


def test_the_child_has_what_it_needs_and_no_more() -> None:
    heavy = ("torch", "ray", "pandas", "scipy", "deepspeed", "transformers", "pyarrow.parquet")
    told = f"import sys, blades_dist.data.sandbox_child; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_a_child_killed_at_work_is_replaced(process: PhotoProcess) -> None:
    first = process.pid
    assert first is not None
    for sent, told in ((signal.SIGKILL, "killed"), (signal.SIGSEGV, "crashed (SIGSEGV)"), (signal.SIGABRT, "SIGABRT")):
        pid, found = process.pid, []
        thread = threading.Thread(
            target=lambda found=found: found.append(outcome_of(process, slow_jpeg(), Annotations()))
        )
        os.kill(pid, signal.SIGSTOP)  # so that it surely has the photo, and surely has not answered
        thread.start()
        while not waiting_for(process):
            assert thread.is_alive()
        os.kill(pid, sent)
        with contextlib.suppress(ProcessLookupError):  # already ended, and buried
            os.kill(pid, signal.SIGCONT)
        thread.join()
        assert found[0].rejected[0][:2] == (None, "unreadable") and told in found[0].rejected[0][2]
        assert len(outcome_of(process, jpeg_of(1)).rows) == 1 and process.pid != pid


def test_a_child_that_died_between_photos_costs_no_photo(process: PhotoProcess) -> None:
    pid = process.pid
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 60)
    assert len(outcome_of(process, jpeg_of(1)).rows) == 1


def test_a_photo_that_takes_too_long() -> None:
    with PhotoProcess(configured(seconds_per_photo=0.1)) as process:
        first = process.pid
        outcome = outcome_of(process, slow_jpeg(), Annotations())
        assert outcome.rejected == [(None, "unreadable", "the decoder took longer than 0.1 s")]
        assert process.pid is None and not psutil.pid_exists(first)
        process._seconds = 60  # a busy machine may need more than that tenth for any photo
        assert outcome_of(process, jpeg_of(1)).faces == 2


def test_a_child_that_is_stopped_takes_too_long_even_to_be_written_to() -> None:
    with PhotoProcess(configured(seconds_per_photo=0.5)) as process:
        os.kill(process.pid, signal.SIGSTOP)
        outcome = outcome_of(process, jpeg_of(1) + bytes(30 * 2**20))
        assert outcome.rejected[0][2] == "the decoder took longer than 0.5 s"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_photo_that_needs_too_much_memory() -> None:
    bomb = png(9900, 10_000, bytes(10_000 * (1 + 4 * 9900)), 8, 6)
    with PhotoProcess(configured(memory_mebibytes=512)) as process:
        first = process.pid
        outcome = outcome_of(process, bomb, Annotations())
        assert outcome.rejected[0][1] == "too_large" and "memory" in outcome.rejected[0][2]
        assert len(outcome_of(process, jpeg_of(1)).rows) == 1 and process.pid == first
        assert peak_mebibytes(first) <= 512 + 64  # pages of libraries are not counted


def test_a_photo_of_a_hundred_megapixels_stays_within_the_bound() -> None:
    """Noise that compresses badly, and a face as large as the photo: every copy is as large as it can be."""
    tile = np.random.default_rng(1).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(tile, (18, 22, 1))).save(buffer, "JPEG", quality=50, exif=exif_of(1))
    data = buffer.getvalue()
    with PhotoProcess(configured()) as process:
        outcome = outcome_of(process, data, Annotations(faces=[face(1000, 0, 9000, 9000)]))
        assert outcome.pixels == 99_000_000 and not outcome.rejected
        assert outcome.rows["width"].to_pylist() == [9000]
        peak = peak_mebibytes(process.pid)
    print(f"peak {peak} MiB")
    assert peak <= 1300


def test_the_child_ends_with_its_parent() -> None:
    script = (
        "import time\nfrom blades_dist.data.sandbox import PhotoProcess\nfrom tests.data.photos import configured\n"
        "process = PhotoProcess(configured()).__enter__()\nprint(process.pid, flush=True)\ntime.sleep(60)"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs([child], 60)[1]


def test_a_closed_process_leaves_nothing_behind() -> None:
    with PhotoProcess(configured()) as process:
        pid = process.pid
    assert process.pid is None and not psutil.pid_exists(pid)
    process.close()


def test_a_missing_model_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"no\.onnx is not a file"):
        PhotoProcess(configured(locator="yunet", locator_model=tmp_path / "no.onnx")).__enter__()


def test_a_child_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxError, match="ended at its start"):
        PhotoProcess(configured()).__enter__()


def test_threads_share_a_child(process: PhotoProcess) -> None:
    results: dict[int, Outcome] = {}
    data = {i: jpeg_of(i) for i in range(8)}
    threads = [threading.Thread(target=lambda i=i: results.update({i: outcome_of(process, data[i])})) for i in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i].rows["photo"].to_pylist() == [photo_of(data[i]).sha256] for i in data)


def test_noise_on_the_child_s_output_is_not_taken_for_an_answer(process: PhotoProcess) -> None:
    """libtiff and others print what they think of a file; the protocol must not see it."""
    data = encoded(np.zeros((64, 64, 3), np.uint8), "TIFF", compression="tiff_lzw")
    damaged = data[:200] + b"\xff" * 60 + data[260:]
    outcome_of(process, damaged, Annotations())
    assert len(outcome_of(process, jpeg_of(1)).rows) == 1
