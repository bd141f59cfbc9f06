"""The rule by which a layer's evidence is computed: what it costs to follow it, to the cheaper of the two ways.

The rule counts operations, so that it gives the same choice, and the same bits, on every machine; this is where its
constants come from and what they are worth.
"""

import torch

from benchmarks.hardware import one_thread
from benchmarks.measure import Figure, bench, interleaved, spread
from fedsiege.products import cheaper_moved, formed, moved

LAYERS = {
    "alexnet conv1": (64, 363, 64),
    "alexnet conv2": (16, 1600, 192),
    "alexnet conv4": (4, 3456, 256),
    "alexnet head": (1, 256, 100),
    "resnet18 stage2": (256, 1152, 128),
    "resnet18 stage3": (64, 2304, 256),
    "resnet18 stage4": (16, 4608, 512),
}
"""Positions, inputs and outputs."""
CLIENTS = (1, 5, 10, 20, 100)
EXAMPLES, REPEATS = 32, 3
DEAREST = 2e11
"""Multiplications above which a way is not tried: ten seconds, for the one that is not taken."""


@bench(
    "evidence_choice",
    "x",
    "lower",
    "CPU time of the way that layers take to the cheaper way, over layers and clients",
)
def evidence_choice() -> list[Figure]:
    with one_thread():
        regrets = {
            f"{name}, {clients}": regret(sizes, clients) for name, sizes in LAYERS.items() for clients in CLIENTS
        }
    worst = max(regrets, key=lambda name: regrets[name])
    print(f"dearest choice: {worst} clients, {regrets[worst]:.2f} x the cheaper way")
    return [spread("evidence_choice", list(regrets.values()), "x", "lower")]


def regret(sizes: tuple[int, int, int], clients: int) -> float:
    """CPU time of the way that the rule takes to that of the cheaper way; 1 where it takes the cheaper."""
    positions, inputs, outputs = sizes
    rng = torch.Generator().manual_seed(0)
    g = torch.randn(EXAMPLES, outputs, positions, generator=rng)
    a = torch.randn(EXAMPLES, positions, inputs, generator=rng).transpose(1, 2)
    updates = torch.randn(clients, outputs * inputs, generator=rng)
    if EXAMPLES * positions * clients * inputs * outputs > DEAREST:
        assert not cheaper_moved(positions, inputs, outputs, clients)
        return 1.0
    times = interleaved(
        {"formed": lambda: formed(g, a, [updates]), "moved": lambda: moved(g, a, [updates])}, REPEATS
    )
    fastest = {way: min(seconds) for way, seconds in times.items()}
    taken = "moved" if cheaper_moved(positions, inputs, outputs, clients) else "formed"
    return fastest[taken] / min(fastest.values())
