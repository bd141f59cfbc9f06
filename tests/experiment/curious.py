"""An attack that writes down what it is shown, for tests of what a run provides."""

from typing import Any, Literal

import numpy as np

from fedsiege.attacks.membership.base import MembershipAttack, series
from fedsiege.registry import register
from fedsiege.view import Values, View

SEEN: list[tuple["Curious", View, int]] = []
"""The attack, its view and the target of every call since the list was emptied."""


@register("curious")
class Curious(MembershipAttack):
    """The mean loss, or the truth wherever it is known and nothing elsewhere."""

    title = "Curious"
    needs = frozenset({"loss"})
    multi_round = True
    single_update = False

    vantage: Literal["server", "client", "server_aggregate_only"] = "server"
    """Where it works from."""
    shadows: int = 0
    """Shadow federations that it wants."""
    population: int = 0
    """Examples of nobody's that it wants."""
    told: bool = False
    """Whether it is told the truth about half of the candidates."""
    cheat: bool = False
    """Whether it answers with what it was told."""

    @property
    def shadows_wanted(self) -> int:
        """As the field says."""
        return self.shadows

    @property
    def population_wanted(self) -> int:
        """As the field says."""
        return self.population

    @property
    def truth_wanted(self) -> bool:
        """As the field says."""
        return self.told

    def score(self, view: View, target: int) -> Values:
        """Its scores [m]."""
        SEEN.append((self, view, target))
        losses: Values = np.mean([view.own("loss", target, t) for t in series(self, view, target)], axis=0)
        if not self.cheat:
            return -losses
        scores = np.zeros_like(losses)
        known = view.known(target)
        scores[known.columns] = np.where(known.members, 1.0, -1.0)
        return scores


def curious(**fields: Any) -> dict[str, Any]:
    """It, as a config names it."""
    return {"name": "curious:Curious", **fields}


def seen(**fields: Any) -> list[tuple[View, int]]:
    """The views and targets of the calls of the attack with these fields."""
    return [(view, target) for attack, view, target in SEEN if attack == Curious(**fields)]
