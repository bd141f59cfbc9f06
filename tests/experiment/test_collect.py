"""What of a run goes into sweep.json."""

import pytest
from tiny import TINY

from fedsiege.experiment.collect import ADAPTED, defended
from fedsiege.experiment.config import load


@pytest.mark.parametrize(
    ("label", "adapted"),
    [
        ("fedmia_ii", False),
        ("fedmia_ii(combine=sum_z)", False),
        ("fedmia_ii(coordinates=nonzero)", True),
        ("fedmia_ii(combine=sum_z, average=trained)", True),
        ("mine(my_average=3)", False),
    ],
)
def test_what_a_label_says_of_an_attack(label: str, adapted: bool) -> None:
    assert bool(ADAPTED.search(label)) is adapted


def test_defences_by_name_and_label_in_order() -> None:
    experiment = load({**TINY, "defences": [{"name": "perturb", "sigma": 0.5}, "sparsify"]})
    assert defended(experiment) == (["perturb", "sparsify"], ["perturb(sigma=0.5)", "sparsify"])
    assert defended(load(TINY)) == ([], [])
