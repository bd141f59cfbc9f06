"""FedSiege attacks and defends federated learning: what a federation leaks, and what a defence costs.

    import fedsiege as fs

    result = fs.run("quickstart", out="runs/quickstart")
    print(result.table())

Attributes are imported when they are first used, so that `fedsiege --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsiege import attacks, metrics
    from fedsiege.aggregation import aggregate
    from fedsiege.experiment import reproduce, run, sweep
    from fedsiege.report.result import Result
    from fedsiege.scoring import score

__version__ = "0.1.0"

__all__ = ["Result", "__version__", "aggregate", "attacks", "metrics", "reproduce", "run", "score", "sweep"]

_HOMES = {
    "Result": "fedsiege.report.result",
    "aggregate": "fedsiege.aggregation",
    "reproduce": "fedsiege.experiment",
    "run": "fedsiege.experiment",
    "score": "fedsiege.scoring",
    "sweep": "fedsiege.experiment",
}
_ROOMS = {"attacks", "metrics"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"fedsiege.{name}")
    else:
        raise AttributeError(f"module 'fedsiege' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
