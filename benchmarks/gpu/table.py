"""The lines of a check as one Markdown table for people: benchmarks/results/gpu.md."""

import json
from pathlib import Path
from typing import Any

COLUMNS = ("batch", "graphs", "ms", "images/s", "x plain", "GPU busy ms", "kernels", "peak GiB")


def table(file: Path) -> str:
    """Markdown of a ``gpu.jsonl``: what steps cost, then every other line."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    costs = [line for line in lines if line["part"] == "cost"]
    head = ["# A GPU's check", "", "Made by `sh benchmarks/gpu.sh`; figures of one run, each a median of a few steps."]
    failed = [f"{line['part']}, {line['what']}" for line in lines if not line["ok"]]
    head += ["", f"**Failed: {'; '.join(failed)}**" if failed else "Every check passed."]
    body = ["", f"| a step, bf16 unless it says | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for line in costs:
        figures = line["figures"] | {"x plain": _over_plain(line, costs)}
        body.append(f"| {line['what']} | {' | '.join(str(figures.get(name, '')) for name in COLUMNS)} |")
    body += ["", "| part | what | found |", "|---|---|---|"]
    for line in lines:
        if line["part"] != "cost":
            figures = "; ".join(f"{name} {value}" for name, value in line["figures"].items())
            found = f"{'' if line['ok'] else '**FAILED** '}{figures or 'yes'}".replace("\n", " ").replace("|", "/")
            body.append(f"| {line['part']} | {line['what']} | {found} |")
    return "\n".join([*head, *body]) + "\n"


def _over_plain(line: dict[str, Any], costs: list[dict[str, Any]]) -> str:
    def key(of: dict[str, Any]) -> tuple[object, object]:
        return of["figures"]["batch"], of["figures"]["graphs"]

    plain = [other for other in costs if other["what"] == "plain" and key(other) == key(line)]
    try:
        return f"{float(line['figures']['ms']) / float(plain[0]['figures']['ms']):.2f}" if plain else ""
    except ValueError:  # it did not fit
        return ""
