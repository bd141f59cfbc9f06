"""How well an attack did, with an interval on every figure: arrays in, frozen values out, no other room needed.

A score is higher for a likelier member, an attack is the rule "member where score >= threshold", and members and
non-members with equal scores enter together.
"""

from fedsiege.metrics.frontier import hypervolume, over_seeds, pareto
from fedsiege.metrics.intervals import clopper_pearson, estimate_dict
from fedsiege.metrics.membership import FPRS, Audit, OverTargets, TprEstimate, audit, over_targets
from fedsiege.metrics.null import NullTest, null_test
from fedsiege.metrics.roc import Roc

__all__ = [
    "FPRS",
    "Audit",
    "NullTest",
    "OverTargets",
    "Roc",
    "TprEstimate",
    "audit",
    "clopper_pearson",
    "estimate_dict",
    "hypervolume",
    "null_test",
    "over_seeds",
    "over_targets",
    "pareto",
]
