"""`score`: a registered membership attack applied to plain arrays of signals."""

from collections.abc import Mapping
from typing import Any

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.view import ArrayEvidence, Values, View


def score(
    attack: str | dict[str, Any] | MembershipAttack,
    signals: Mapping[str, Any],
    target: int = 0,
    **fields: Any,
) -> Values:
    """One number per candidate; higher = member.

    Args:
        attack: a name, `{name: ..., field: ...}` or a membership attack.
        signals: what the attack reads of `loss cosine diff` [T, K, m] and `norm2` [T, m], for T rounds, K clients
            and m candidates; `top spread entropy modified_entropy` [T, K, m] for seqmia; `head` [T, K, C] and
            `labels` [m] for label_only; `global_loss` (and `global_top` and so on) `aggregate_cosine
            aggregate_diff` [T, m] for vantages that see global models only; `present` [T, K] where clients were
            sampled (rows of absent clients may be NaN).
        target: the client asked about, 0..K-1.
        fields: the attack's fields; `round` counts 1..T and is the last one when left out.

    Returns:
        The scores [m], float64.

    Raises InputError naming the array or field, what was given and what was expected.

    """
    if isinstance(attack, MembershipAttack):
        if fields:
            raise InputError(f"score: got fields {', '.join(fields)}; expected none beside an attack that is built")
        built = attack
    else:
        spec = {"name": attack} if isinstance(attack, str) else dict(attack)
        built = build("membership", {**spec, **fields}, "score")
    return built.score(View(ArrayEvidence(signals), built.vantage), target)
