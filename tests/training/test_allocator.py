"""The allocator's switch does what it says in a process of its own."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from blades_dist.training.determinism import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory() is {glibc}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.zeros(4 * 2**20)  # 16 MiB, 4096 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def test_freed_memory_is_taken_again() -> None:
    glibc = platform.libc_ver()[0] == "glibc"
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(glibc=glibc)], capture_output=True, text=True, check=True, timeout=300
    )
    if not glibc:
        pytest.skip("the C library has no such switch")
    assert int(done.stdout) < 4096, "mapped anew, 50 arrays cost 200,000 page faults"
