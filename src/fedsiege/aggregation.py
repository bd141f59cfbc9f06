"""Screening what arrived, and `aggregate`: a registered rule applied to a plain matrix of updates."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsiege.aggregators.base import Aggregator, Server, Treatment
from fedsiege.errors import InputError
from fedsiege.records import Cohort
from fedsiege.registry import build


def acceptable(row: Tensor, size: int) -> str | None:
    """None for an update the server can use, else what is wrong with it: `misshapen` or `nonfinite`."""
    if row.shape != (size,) or not row.is_floating_point():
        return "misshapen"
    # The sum is finite only if every entry is (or if the sum overflows, which the exact test then settles).
    if not torch.isfinite(row.sum()) and not bool(torch.isfinite(row).all()):
        return "nonfinite"
    return None


def aggregate(
    rule: str | dict[str, Any] | Aggregator,
    updates: Any,
    weights: Any = None,
    server: Server | None = None,
    **fields: Any,
) -> tuple[Tensor, Treatment]:
    """Combine updates [n, d] by a registered rule.

    Args:
        rule: a name, `{name: ..., field: ...}` or an aggregator.
        updates: [n, d], an array or a tensor; rows with a non-finite entry are dropped and counted.
        weights: [n], positive; all equal when left out.
        server: what the server knows besides, for rules that draw, remember or have examples of their own.
        fields: the rule's fields.

    Returns:
        The combined update [d], and what became of the n rows: `kept` [n] (0: rejected), `scale` [n], and the
        rule's counters (`dropped_nonfinite` among them).

    """
    if isinstance(rule, Aggregator):
        if fields:
            raise InputError("aggregate: fields belong to a rule given by name")
        built = rule
    else:
        spec = {"name": rule} if isinstance(rule, str) else dict(rule)
        built = build("aggregator", {**spec, **fields}, "aggregate")
    rows = _tensor("updates", updates)
    if rows.dim() != 2 or not rows.is_floating_point() or not len(rows):
        raise InputError(
            f"aggregate: updates have shape {tuple(rows.shape)} and type {rows.dtype}; expected floats [n, d]"
        )
    shares = torch.ones(len(rows)) if weights is None else _tensor("weights", weights)
    if shares.shape != (len(rows),) or not bool(((shares > 0) & torch.isfinite(shares)).all()):
        raise InputError(f"aggregate: weights must be {len(rows)} positive numbers, one for each row")
    kept = [i for i in range(len(rows)) if acceptable(rows[i], rows.shape[1]) is None]
    if not kept:
        raise InputError(f"aggregate: none of the {len(rows)} updates is finite")
    cohort = Cohort(
        clients=tuple(kept),
        updates=rows[kept],
        weights=shares[kept].double(),
        ages=(0,) * len(kept),
        starts={},
    )
    combined, found = built(cohort, Server() if server is None else server)
    whole = Treatment.plain(len(rows), {**found.counters, "dropped_nonfinite": len(rows) - len(kept)})
    whole.kept.zero_()[kept] = found.kept
    whole.scale[kept] = found.scale
    return combined, whole


def _tensor(name: str, given: Any) -> Tensor:
    try:
        return torch.as_tensor(given if isinstance(given, Tensor) else np.array(given))
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"aggregate: {name} are not numbers in rows of one length ({error})") from None
