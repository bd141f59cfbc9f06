"""What this machine can do: the limits that other figures are held against."""

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from benchmarks.measure import Figure, Unmeasurable, bench, cpu_seconds, spread

SIZE = 1024
"""Rows and columns of the matrices."""
BYTES = 2**28
"""Size of the block that is copied: more than one core's share of the caches."""
PRODUCTS, REPEATS = 4, 15
CPUINFO = Path("/proc/cpuinfo")
BF16 = {"amx_bf16", "avx512_bf16", "avx_bf16", "bf16"}
"""How processors call it that they multiply bfloat16 by themselves."""


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a matrix product on one thread, at best; measured once per process."""
    return max(_matmul_rates(dtype))


def copy_rate() -> float:
    """Bytes read and written a second by one thread that copies memory, at best; measured once per process."""
    return max(_copy_rates())


def cpu_name() -> str:
    """The processor's own name for itself."""
    named = _cpuinfo().get("model name", "")
    if platform.system() == "Darwin":
        named = _asked("machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; else torch emulates it, slower than float32."""
    if platform.system() == "Darwin":
        return _asked("hw.optional.arm.FEAT_BF16") == "1"
    about = _cpuinfo()
    return not BF16.isdisjoint((about.get("flags", "") + " " + about.get("Features", "")).split())


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@bench("matmul_gflops", "GFLOP/s", "higher", f"float32 product of {SIZE} x {SIZE} matrices on one thread")
def matmul_gflops() -> list[Figure]:
    return [spread("matmul_gflops", [rate / 1e9 for rate in _matmul_rates(torch.float32)], "GFLOP/s", "higher")]


@bench("matmul_bf16_gflops", "GFLOP/s", "higher", "the same product in bfloat16")
def matmul_bf16_gflops() -> list[Figure]:
    if not has_bf16():
        raise Unmeasurable(f"{cpu_name()} has no bfloat16 arithmetic of its own")
    rates = [rate / 1e9 for rate in _matmul_rates(torch.bfloat16)]
    return [spread("matmul_bf16_gflops", rates, "GFLOP/s", "higher")]


@bench("memory_copy_gbs", "GB/s", "higher", f"bytes read and written by a copy of {BYTES >> 20} MiB on one thread")
def memory_copy_gbs() -> list[Figure]:
    return [spread("memory_copy_gbs", [rate / 1e9 for rate in _copy_rates()], "GB/s", "higher")]


@cache
def _matmul_rates(dtype: torch.dtype) -> tuple[float, ...]:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=rng).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    with one_thread():
        products()
        torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=2**-7, atol=0.5)
        return tuple(2 * SIZE**3 * PRODUCTS / cpu_seconds(products) for _ in range(REPEATS))


@cache
def _copy_rates() -> tuple[float, ...]:
    source = torch.ones(BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    with one_thread():
        target.copy_(source)
        return tuple(2 * BYTES / cpu_seconds(lambda: target.copy_(source)) for _ in range(REPEATS))


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    if not CPUINFO.is_file():
        return {}
    lines = [line.partition(":") for line in CPUINFO.read_text().partition("\n\n")[0].splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def _asked(name: str) -> str:
    """What macOS answers to the question for a property; nothing where it does not know."""
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
