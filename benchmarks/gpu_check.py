"""What the package does on a GPU: right numbers, what steps cost, host waits, the loss kernel, DeepSpeed.

python benchmarks/gpu_check.py --out FOLDER routes large     these parts; their lines are added to FOLDER/gpu.jsonl
python benchmarks/gpu_check.py --out FOLDER table            FOLDER/gpu.md from all lines so far
python benchmarks/gpu_check.py --device cpu --quick          every part on a tiny model: does it work

``benchmarks/gpu.sh`` runs all of it. Needs torch, transformers, numpy, pydantic, pyyaml, safetensors; deepspeed and
hjson for part stages. No Ray. The status is 1 where a check failed.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from gpu import around, cost, numbers
from gpu.problem import Check
from gpu.table import table

PARTS: dict[str, Callable[[Check], None]] = {
    "env": around.env,
    "parity": numbers.parity,
    "waits": cost.waits,
    "routes": cost.routes,
    "large": cost.large,
    "loss": around.loss,
    "features": numbers.features,
    "stages": around.stages,
    "deterministic": numbers.deterministic,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}, table")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS, "table"}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}, table")
    check = Check(torch.device(options.device), options.quick, options.out)
    for name in options.parts or PARTS:
        if name == "table":
            text = table(options.out / "gpu.jsonl")
            (options.out / "gpu.md").write_text(text)
            print(text)
            continue
        begin = time.monotonic()
        try:
            PARTS[name](check)
        except Exception:  # the other parts are worth having
            check.say(name, "raised", {"error": traceback.format_exc()[-1500:]}, False)
        print(f"[{name}: {time.monotonic() - begin:.1f} s]", flush=True)
    sys.exit(check.failures > 0)


if __name__ == "__main__":
    main()
