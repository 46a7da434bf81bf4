"""What a benchmark's table calls the device it ran on."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's model where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
