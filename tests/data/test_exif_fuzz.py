"""The EXIF reader on what no camera wrote. ``benchmarks/fuzz_exif.py --cases 100000`` runs more, with figures."""

import os
import tracemalloc
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blades_dist.data import exif, exif_reader
from blades_dist.testing.exif_cases import VALID, check_reader, files
from tests.work import lines_run

CASES = int(os.environ.get("BLADES_FUZZ_CASES", 500))
# ``check_reader`` reads a file three times. What a reading costs beside the file's own bytes, and a byte (a fill byte
# before a JPEG's segment costs most), in lines of code that run; whoever looks at every pair of bytes needs many times
# as many.
LINES, LINES_A_BYTE = 500, 20


@settings(max_examples=CASES, database=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_the_reader_keeps_its_promise(data: bytes) -> None:
    lines_run(partial(check_reader, data), LINES + LINES_A_BYTE * len(data))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe1\x01\x00Exif\0\0", b"II*\0", b"MM\0*"]))
def test_on_any_bytes(data: bytes, opening: bytes) -> None:
    check_reader(opening + data)


def test_the_valid_block_is_understood() -> None:
    raw = exif.read_exif(VALID)
    assert None not in raw.values() and (raw["iso"], raw["make"]) == (102400.0, "Pentax")


def test_large_files_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty megabytes of segments, chunks and directories that lead nowhere: no more than the limit of segments."""
    segment, chunk, limit = b"\xff\xe2\x00\x02", b"\0\0\0\0none\0\0\0\0", 1000
    hostile = [
        b"\xff\xd8" + segment * (5 * 2**20),
        b"\xff\xd8" + b"\xff" * (20 * 2**20),
        b"\x89PNG\r\n\x1a\n" + chunk * (2 * 2**20),
        b"RIFF\0\0\0\0WEBP" + b"none\0\0\0\0" * (2 * 2**20),
        b"II*\0\x08\0\0\0" + b"\xff" * (20 * 2**20),
    ]
    directories = 2 * 12 * exif_reader._MAX_ENTRIES
    monkeypatch.setattr(exif_reader, "_MAX_SEGMENTS", limit)
    for data in hostile:
        lines_run(partial(check_reader, data), LINES + LINES_A_BYTE * directories + 30 * limit)
        tracemalloc.start()
        check_reader(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**16, "the file is not copied"
    monkeypatch.undo()
    for data in hostile:
        check_reader(data)
