"""A GPU's figures: local training against the card's own rates, and evidence against per-client recomputation.

Everything takes the device as an argument, so that the same code runs, much smaller, in the tests on a CPU.
"""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evidence import Setting, by_opacus, by_torch_func
from benchmarks.measure import Figure, Unmeasurable, bench, ratios, spread
from benchmarks.training import Precision
from benchmarks.training import Setting as Workload
from fedsiege.task import tf32

SIZE, PRODUCTS, REPEATS = 8192, 20, 5


@bench("gpu_train_bf16", "images/s", "higher", "ResNet18 on 32x32 images, batch 100, precision: bf16, whole rounds")
def gpu_train_bf16() -> list[Figure]:
    return trained("gpu_train_bf16", "bf16", card(), clients=10, images=5000)


@bench("gpu_train_fp32", "images/s", "higher", "the same in float32")
def gpu_train_fp32() -> list[Figure]:
    return trained("gpu_train_fp32", "fp32", card(), clients=10, images=5000)


@bench(
    "gpu_evidence_alexnet_k10", "x", "higher", "wall time to one pass for 10 clients of per-client recomputation"
)
def gpu_evidence_alexnet_k10() -> list[Figure]:
    return recorded("gpu_evidence_alexnet_k10", Setting("alexnet", 10, ours=20_000, theirs=100, device=card()))


@bench("gpu_evidence_resnet18_k10", "x", "higher", "the same for ResNet18 with GroupNorm")
def gpu_evidence_resnet18_k10() -> list[Figure]:
    return recorded("gpu_evidence_resnet18_k10", Setting("resnet18", 10, ours=5000, theirs=50, device=card()))


def card() -> str:
    """The GPU, where there is one."""
    if not torch.cuda.is_available():
        raise Unmeasurable("torch finds no CUDA device here")
    print(f"{torch.cuda.get_device_name()}: peak memory and rates are this card's")
    return "cuda"


def trained(name: str, precision: Precision, device: str, clients: int, images: int) -> list[Figure]:
    """Images a second over whole rounds, the share of the card's rate that is, and peak memory."""
    setting = Workload({"name": "resnet18", "norm": "batch"}, precision, device=device, images=images, batch=100)
    limit = matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    forget(device)
    for turn in range(REPEATS + 1):
        call = setting.federation(range(clients * turn, clients * turn + clients))
        seconds.append(elapsed(call, device))
    peak = memory(name, device)
    seen = clients * images * setting.training.epochs
    rate = 3 * forward_flops(setting) * seen  # a backward pass costs two forward passes
    return [
        spread(name, [seen / s for s in seconds[1:]], "images/s", "higher"),
        spread(f"{name}_limit", [100 * rate / s / limit for s in seconds[1:]], "% of matmul", "higher"),
        *peak,
    ]


def recorded(name: str, setting: Setting) -> list[Figure]:
    """The ratio of wall times per candidate, in turns, candidates a second, and our side's peak memory."""
    with tf32(False):
        sides = [by_opacus(setting), by_torch_func(setting)]
        for side in sides:
            setting.check(side)
        quicker = min(sides, key=lambda side: elapsed(lambda: setting.recomputed(side), setting.device))
        theirs, ours = [], []
        for _ in range(REPEATS):
            theirs.append(elapsed(lambda: setting.recomputed(quicker), setting.device))
            forget(setting.device)
            ours.append(elapsed(setting.align, setting.device))
            peak = memory(name, setting.device)
    per_candidate = ratios([s / setting.theirs for s in theirs], [s / setting.ours for s in ours])
    return [
        spread(name, per_candidate, "x", "higher"),
        spread(f"{name}_candidates", [setting.ours / s for s in ours], "candidates/s", "higher"),
        *peak,
    ]


def elapsed(call: Callable[[], object], device: str) -> float:
    """Wall seconds of a call, to the end of what it started on the device."""
    _wait(device)
    since = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - since


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def forget(device: str) -> None:
    """Begin to count peak memory anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def memory(name: str, device: str) -> list[Figure]:
    """The most memory that tensors on the card have taken since `forget`, model and data among them."""
    if device != "cuda":
        return []
    return [spread(f"{name}_memory", [torch.cuda.max_memory_allocated() / 1e9], "GB", "lower")]


def forward_flops(setting: Workload) -> float:
    """Floating-point operations of one image's forward pass."""
    x = setting.task.inputs(setting.client(0).x[:1].to(setting.device))
    setting.task.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        setting.task.logits(x)
    return float(counter.get_total_flops())


def matmul_rate(device: str, dtype: torch.dtype, size: int = SIZE) -> float:
    """Floating-point operations a second of large matrix products, at best."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b)

    with tf32(False):
        seconds = [elapsed(products, device) for _ in range(REPEATS)]
    return float(2 * size**3 * PRODUCTS / min(seconds))
