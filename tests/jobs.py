"""Jobs as a person starts them, within this process: what they print, without the cost of importing torch again."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

JOBS = Path(__file__).parents[1] / "jobs"


def run_job(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``python jobs/NAME ARGUMENTS``: its exit status and what it wrote to both streams."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(JOBS / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), f"{name} ended without a status"
    return subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())
