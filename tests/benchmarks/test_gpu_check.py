"""The one command that checks a GPU runs, on a tiny model and a CPU, and ends with its table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu.table import table

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["sh", "benchmarks/gpu.sh", "--quick", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    text = (tmp_path / "gpu.md").read_text()
    assert done.stdout.endswith(text + "\n") and "Every check passed." in text
    for part in (
        "exact, reuse",
        "released code",
        "error against f64",
        "features",
        "fidelity loss",
        "DeepSpeed stage 1",
    ):
        assert part in text
    assert "deterministic" in text


def test_the_table_says_what_failed_and_compares_with_the_plain_step(tmp_path):
    lines = [
        '{"part": "cost", "what": "plain", "ok": true, "figures": {"batch": 48, "graphs": "no", "ms": "20.0"}}',
        '{"part": "cost", "what": "exact", "ok": true, "figures": {"batch": 48, "graphs": "no", "ms": "50.0"}}',
        '{"part": "cost", "what": "exact", "ok": true, "figures": {"batch": 9, "graphs": "no", "ms": "out of memory"}}',
        '{"part": "features", "what": "equal bits", "ok": false, "figures": {"found": "1e-3"}}',
    ]
    (tmp_path / "gpu.jsonl").write_text("\n".join(lines))
    text = table(tmp_path / "gpu.jsonl")
    assert "**Failed: features, equal bits**" in text and "| features | equal bits | **FAILED** found 1e-3 |" in text
    assert "| exact | 48 | no | 50.0 |  | 2.50 |" in text and "| exact | 9 | no | out of memory |  |  |" in text
