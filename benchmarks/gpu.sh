#!/bin/sh
# Everything that a GPU is to tell, in one command of at most eight minutes:  sh benchmarks/gpu.sh [--quick] [FOLDER]
# From the repository's root, with the package importable. FOLDER (default: $OUT, else a new temporary one) gets gpu.md,
# the table, and gpu.jsonl. Parts come in order of worth, each under its own limit in seconds, so that none takes the
# others' time; one that fails or runs out does not end the rest, but the status is 1. --quick: tiny, on a CPU, half a
# minute of it.
# A machine without the package's dependencies: put wheels of pydantic and what it needs (and of deepspeed and hjson for
# part `stages`) into a folder, `pip install --no-index --no-deps --target FOLDER *.whl`, and FOLDER on PYTHONPATH.
set -u
quick= status=0
if [ "${1:-}" = --quick ]; then quick=1 && shift; fi
out=${1:-${OUT:-$(mktemp -d)}}
mkdir -p "$out" && rm -f "$out/gpu.jsonl"
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
python=$(command -v "${PYTHON:-python3}")

part() {
    limit=$1 && shift
    echo "== $* (at most $limit s)"
    timeout "$limit" "$@" || { echo "== status $?" && status=1; }
}
check() { limit=$1 && shift && part "$limit" "$python" benchmarks/gpu_check.py --out "$out" "$@"; }

if [ -n "$quick" ]; then
    export OMP_NUM_THREADS=1 # a tiny model: more would only wait for each other
    check 300 --device cpu --quick env parity waits routes large loss features stages deterministic
else
    check 50 env parity waits
    check 120 routes
    check 50 large
    check 30 loss
    check 25 features
    CUBLAS_WORKSPACE_CONFIG=:4096:8 check 35 deterministic
    CUBLAS_WORKSPACE_CONFIG=:4096:8 check 50 stages
    # Without tests/conftest.py, which needs Ray.
    part 120 "$python" -m pytest --noconftest -p no:cacheprovider -q -x -k 'not compiles and not rank' \
        tests/training/test_cuda_graphs.py tests/models/test_batchnorm_kernel.py tests/test_manipulate.py \
        tests/training/test_prefetch.py tests/losses/test_fused.py
fi
"$python" benchmarks/gpu_check.py --out "$out" table
exit $status
