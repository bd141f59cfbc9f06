"""What an attack says of itself must be something that the house knows."""

from typing import Literal

import pytest

from fedsiege.attacks.membership.base import MembershipAttack, check_declared
from fedsiege.errors import InputError
from fedsiege.registry import build, names, register
from fedsiege.view import Vantage


@register("nowhere")
class Nowhere(MembershipAttack):
    """An attack that does not say where it works from."""

    title = "Nowhere"
    needs = frozenset({"loss"})


@register("misspelt")
class Misspelt(MembershipAttack):
    """An attack that needs a signal which does not exist."""

    title = "Misspelt"
    needs = frozenset({"losss"})  # type: ignore[arg-type]
    vantage: Vantage = "server"


@register("elsewhere")
class Elsewhere(MembershipAttack):
    """An attack from a place that nobody knows."""

    title = "Elsewhere"
    needs = frozenset({"loss"})
    vantage: Literal["cellar"] = "cellar"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Nowhere(), r"attacks\.2: nowhere has no vantage; expected a field"),
        (Misspelt(), r"attacks\.2: misspelt needs 'losss' \(did you mean 'loss'\?\); known signals: "),
        (Elsewhere(), r"attacks\.2: elsewhere has vantages that are not known; known: client, "),
    ],
)
def test_unknown_words_are_refused(attack: MembershipAttack, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_declared(attack, "attacks.2")


@pytest.mark.parametrize("name", names("membership"))
def test_registered_attacks_are_declared_well(name: str) -> None:
    check_declared(build("membership", name, "x"), "x")
