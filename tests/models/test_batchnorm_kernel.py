"""BatchNorm's tangent: torch's own operations and the Triton kernel against float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blades_dist.models import batchnorm_ops
from blades_dist.models.batchnorm_ops import batchnorm_sums

triton = pytest.importorskip("triton", reason="triton is in the dev and gpu extras")

from blades_dist.models import batchnorm_kernel  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(2, 3, 5, 5), (3, 64, 7, 9), (1, 70, 1, 1), (4, 130, 4, 4)]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
PARTS = [
    {"sums", "dweight", "dbias", "dshortcut", "result"},
    {"sums", "dweight", "dbias", "result"},
    {"sums"},
    {"dweight", "dbias"},
    set(),
]


def problem(shape: tuple[int, ...], dtype: torch.dtype, parts: set[str]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Activations in ``dtype``, and what is known of their channels in fp32; all keywords of ``batchnorm_tangent``."""
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE)

    names = ["x", "dx", *sorted(parts & {"dshortcut", "result"})]
    wide = {name: random(*shape).to(dtype).contiguous(memory_format=torch.channels_last) for name in names}
    wide["x"] += 3
    channels: dict[str, object] = {"mean": wide["x"].float().mean((0, 2, 3)), "invstd": random(shape[1]).abs() + 0.5}
    channels["weight"] = random(shape[1])
    channels |= {name: random(shape[1]) for name in sorted(parts & {"dweight", "dbias"})}
    if "sums" in parts:
        n = (wide["x"].double() - channels["mean"].view(-1, 1, 1)) * channels["invstd"].view(-1, 1, 1)
        dx = wide["dx"].double()
        channels["total"], channels["along"] = (value.sum((0, 2, 3)).float() for value in (dx, n * dx))
        channels["count"] = float(shape[0] * shape[2] * shape[3])
    return wide, channels


def formula(wide: dict[str, Tensor], channels: dict[str, object]) -> Tensor:
    """What ``batchnorm_tangent`` says of itself, in float64."""
    at = {name: value.double().view(-1, 1, 1) for name, value in channels.items() if isinstance(value, Tensor)}
    x, dx = wide["x"].double(), wide["dx"].double()
    n, count = (x - at["mean"]) * at["invstd"], channels.get("count", 1.0)
    nothing = torch.zeros_like(at["mean"])
    moved = at["weight"] * at["invstd"] * (dx - at.get("total", nothing) / count - n * at.get("along", nothing) / count)
    moved = (
        moved + at.get("dweight", nothing) * n + at.get("dbias", nothing) + wide.get("dshortcut", torch.zeros_like(x))
    )
    return moved * (wide["result"] > 0) if "result" in wide else moved


@pytest.mark.parametrize("path", ["torch", "triton"])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(sorted(parts)) or "none")
@pytest.mark.parametrize("shape", SHAPES)
def test_tangent_equals_the_formula(shape: tuple[int, ...], parts: set[str], dtype: torch.dtype, path: str) -> None:
    wide, channels = problem(shape, dtype, parts)
    expected = formula(wide, channels)
    optional = ("dweight", "dbias", "total", "along")
    arguments = [wide["x"], wide["dx"], *(channels[name] for name in ("mean", "invstd", "weight"))]
    arguments += [channels.get(name) for name in optional] + [channels.get("count", 1.0)]
    arguments += [wide.get("dshortcut"), wide.get("result")]
    found = (batchnorm_kernel.tangent if path == "triton" else batchnorm_ops._tangent)(*arguments)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    largest = float(expected.abs().max())
    # Triton's interpreter cuts bfloat16 off where a GPU rounds.
    rounding = ROUNDING[dtype] * (2 if path == "triton" and dtype == torch.bfloat16 and DEVICE == "cpu" else 1)
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=4e-6 * max(largest, 1))


@pytest.mark.parametrize("dtype", [torch.float64, *ROUNDING])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_equal_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    wide, channels = problem(shape, dtype, {"sums"})
    mean, invstd = (channels[name].to(torch.promote_types(dtype, torch.float32)) for name in ("mean", "invstd"))
    found = batchnorm_sums(wide["dx"], wide["x"], mean, invstd)
    for name, value in zip(("total", "along"), found, strict=True):
        assert value.dtype == mean.dtype
        torch.testing.assert_close(value.float(), channels[name], rtol=1e-5, atol=1e-4)


def test_other_layouts_give_the_same() -> None:
    wide, channels = problem((2, 6, 5, 3), torch.float32, PARTS[0])
    expected = batchnorm_ops.batchnorm_tangent(**wide, **channels)
    tall = {name: value.contiguous() for name, value in wide.items()}
    found = batchnorm_kernel.tangent(
        tall["x"], tall["dx"], *(channels[name] for name in ("mean", "invstd", "weight", "dweight", "dbias")),
        channels["total"], channels["along"], channels["count"], tall["dshortcut"], tall["result"],
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from blades_dist.models.batchnorm_kernel import CHANNELS, ROWS, _kernel
names = _kernel.arg_names
for arch, kind in ((80, "*bf16"), (90, "*bf16"), (90, "*fp32")):
    fixed = dict(DWEIGHT=True, DBIAS=True, SUMS=True, SHORTCUT=True, RELU=True, ROWS=ROWS, CHANNELS=CHANNELS)
    types = dict.fromkeys(names, "*fp32") | dict.fromkeys(("x", "dx", "dshortcut", "result", "moved"), kind)
    types |= dict(rows="i32", channels="i32", share="fp32") | dict.fromkeys(fixed, "constexpr")
    source = ASTSource(
        _kernel,
        types,
        {(names.index(name),): value for name, value in fixed.items()},
        # As the launcher finds them: pointers and channels are multiples of 16.
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if "*" in types[name] or name == "channels"},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
    assert "atom" not in compiled.asm["ptx"]
    open(f"{sys.argv[1]}/{arch}{kind[1:]}.cubin", "wb").write(compiled.asm["cubin"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="triton's compiler is there on Linux")
def test_compiles_for_cuda_without_a_device_and_spills_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for cubin in sorted(tmp_path.glob("*.cubin")):
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        print(cubin.name, usage.splitlines()[-1])
        assert " STACK:0 " in usage and " LOCAL:0 " in usage, usage


def test_a_kernel_that_cannot_be_built_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("fatal error: Python.h: No such file or directory")

    monkeypatch.setattr(batchnorm_kernel, "tangent", broken)
    batchnorm_ops._triton.cache_clear()
    try:
        assert not batchnorm_ops._triton(torch.device("cpu"))
        (record,) = caplog.records
        assert "outer steps take the torch path" in record.getMessage() and "python3-dev" in record.getMessage()
    finally:
        batchnorm_ops._triton.cache_clear()
