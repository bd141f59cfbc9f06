"""What of a run goes into sweep.json."""

from tiny import TINY

from fedsiege.experiment.collect import defended
from fedsiege.experiment.config import load


def test_defences_by_name_and_label_in_order() -> None:
    experiment = load({**TINY, "defences": [{"name": "perturb", "sigma": 0.5}, "sparsify"]})
    assert defended(experiment) == (["perturb", "sparsify"], ["perturb(sigma=0.5)", "sparsify"])
    assert defended(load(TINY)) == ([], [])
