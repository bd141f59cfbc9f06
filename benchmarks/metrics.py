"""The metrics of a million scores."""

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.measure import Figure, bench, cpu_seconds, spread
from fedsiege.metrics import audit

SIDE, REPEATS = 500_000, 3


@bench("metrics_1m", "s", "lower", f"AUC and TPRs with their intervals of {SIDE:,} members and as many non-members")
def metrics_1m() -> list[Figure]:
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(0.3, 1, SIDE), rng.normal(0, 1, SIDE)
    found = audit(members, nonmembers)
    truth = np.repeat([1, 0], SIDE)
    assert np.isclose(found.auc.value, roc_auc_score(truth, np.concatenate((members, nonmembers))), atol=1e-12)
    falling = np.sort(nonmembers)[::-1]
    for fpr, tpr in found.tpr_at_fpr.items():
        assert tpr.value == np.mean(members > falling[round(fpr * SIDE)]), f"the TPR at {fpr} is another"
    return [
        spread(
            "metrics_1m", [cpu_seconds(lambda: audit(members, nonmembers)) for _ in range(REPEATS)], "s", "lower"
        )
    ]
