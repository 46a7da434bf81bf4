"""The EXIF reader on cases that Hypothesis invents: valid blocks damaged, directories of nonsense, random bytes.

PYTHONPATH=. python benchmarks/fuzz_exif.py --cases 100000

Prints cases, seconds, the longest case and how much memory grew; ends with status 1 and the smallest failing case when
the reader breaks its promise.
"""

import argparse
import gc
import resource
import sys
import time

from hypothesis import HealthCheck, given, settings

from blades_dist.testing.exif_cases import check_reader, files


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    wanted = parser.parse_args().cases
    spent: list[float] = []
    growth = 0

    @settings(max_examples=wanted, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(files())
    def run(data: bytes) -> None:
        nonlocal growth
        # CPU time, and no collection of Hypothesis' own garbage: neither is the reader's.
        gc.disable()
        peak, begin = _peak_kibibytes(), time.thread_time()
        check_reader(data)
        spent.append(time.thread_time() - begin)
        growth = max(growth, _peak_kibibytes() - peak)
        gc.enable()

    begin = time.perf_counter()
    run()
    total = time.perf_counter() - begin
    spent.sort()
    print(f"cases {len(spent)}, {total:.1f} s in all, of which {sum(spent):.1f} s in the reader")
    print(f"a case: median {1e6 * spent[len(spent) // 2]:.0f} us, longest {1e3 * spent[-1]:.2f} ms")
    print(f"largest growth of peak memory within a case: {growth} KiB")
    return 0


def _peak_kibibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
