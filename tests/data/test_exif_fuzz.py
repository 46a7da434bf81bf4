"""The EXIF reader on what no camera wrote. ``benchmarks/fuzz_exif.py --cases 100000`` runs more, with figures."""

import os
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blades_dist.data import exif
from tests.data.exif_cases import VALID, check, files

CASES = int(os.environ.get("BLADES_FUZZ_CASES", 2000))
SECONDS = 0.25  # of one case; a thousand times what it takes


@settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_the_reader_keeps_its_promise(data: bytes) -> None:
    begin = time.thread_time()
    check(data)
    assert time.thread_time() - begin < SECONDS


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe1\x01\x00Exif\0\0", b"II*\0", b"MM\0*"]))
def test_on_any_bytes(data: bytes, opening: bytes) -> None:
    check(opening + data)


def test_the_valid_block_is_understood() -> None:
    raw = exif.read_exif(VALID)
    assert None not in raw.values() and (raw["iso"], raw["make"]) == (102400.0, "Pentax")


def test_large_files_cost_no_more() -> None:
    """Twenty megabytes of segments, chunks and directories that lead nowhere."""
    segment, chunk = b"\xff\xe2\x00\x02", b"\0\0\0\0none\0\0\0\0"
    hostile = [
        b"\xff\xd8" + segment * (5 * 2**20),
        b"\xff\xd8" + b"\xff" * (20 * 2**20),
        b"\x89PNG\r\n\x1a\n" + chunk * (2 * 2**20),
        b"RIFF\0\0\0\0WEBP" + b"none\0\0\0\0" * (2 * 2**20),
        b"II*\0\x08\0\0\0" + b"\xff" * (20 * 2**20),
    ]
    for data in hostile:
        begin = time.thread_time()
        check(data)
        assert time.thread_time() - begin < 2
