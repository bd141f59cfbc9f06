"""Judging a membership attack by its scores, on one target or on several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from fedsiege.errors import InputError
from fedsiege.metrics.intervals import (
    check_level,
    clopper_pearson,
    delong,
    delong_clustered,
    estimate_dict,
    number,
)
from fedsiege.metrics.roc import Pair, Roc, pairs_of, roc_curve, scores_of
from fedsiege.records import Estimate

Convention = Literal["at_most", "strict"]

FPRS = (0.1, 0.01, 0.001, 0.0001)
"""The false-positive rates every table gives."""

ENOUGH = 10
"""A TPR that rests on fewer false positives than this carries a warning."""


@dataclass(frozen=True, slots=True)
class TprEstimate(Estimate):
    """The share of members found at a false-positive rate; n counts the members.

    `threshold` is the score from which a candidate is called a member (infinite where no score is high enough),
    `false_positives` the non-members that reach it, `warning` a sentence where the figure rests on too few.
    """

    false_positives: int
    threshold: float
    warning: str | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What one set of scores tells about membership; `audit` says what each figure means.

    `n_distinct_nonmembers` is below `n_nonmembers` where several targets were judged on the same examples.
    """

    n_members: int
    n_nonmembers: int
    n_distinct_nonmembers: int
    auc: Estimate
    tpr_at_fpr: Mapping[float, TprEstimate]
    balanced_accuracy: Estimate
    log_auc: float
    roc: Roc = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The figures as result.json holds them; the curve is not among them."""
        return {
            "n_members": self.n_members,
            "n_nonmembers": self.n_nonmembers,
            "n_distinct_nonmembers": self.n_distinct_nonmembers,
            "auc": estimate_dict(self.auc),
            "tpr_at_fpr": {
                str(fpr): {**estimate_dict(tpr), "false_positives": tpr.false_positives, "warning": tpr.warning}
                for fpr, tpr in self.tpr_at_fpr.items()
            },
            "balanced_accuracy": estimate_dict(self.balanced_accuracy),
            "log_auc": number(self.log_auc),
        }


@dataclass(frozen=True, slots=True)
class OverTargets:
    """Several targets: each alone, all pooled, the plain means over them, and the index of the worst off."""

    targets: tuple[Audit, ...]
    pooled: Audit
    mean_auc: float
    mean_tpr_at_fpr: Mapping[float, float]
    worst: int

    def as_dict(self) -> dict[str, Any]:
        """The pooled figures as result.json holds them, with the means over targets."""
        means = {str(fpr): number(tpr) for fpr, tpr in self.mean_tpr_at_fpr.items()}
        return {
            **self.pooled.as_dict(),
            "mean_over_targets": {"auc": number(self.mean_auc), "tpr_at_fpr": means},
        }


def audit(
    member_scores: ArrayLike,
    nonmember_scores: ArrayLike,
    convention: Convention = "at_most",
    fprs: Sequence[float] = FPRS,
    level: float = 0.95,
) -> Audit:
    """Judge an attack on one target from the scores of its members [m] and of non-members [n].

    * `auc`: P(member > non-member) + P(equal) / 2, with DeLong's interval on the logit scale. Where DeLong's
      variance is zero or undefined (perfect separation, all scores equal, a single member) the interval is
      Clopper-Pearson's for min(m, n) disjoint pairs.
    * `tpr_at_fpr`: with `at_most` the largest TPR at an FPR of at most x; with `strict` the TPR of the last point
      below x on scikit-learn's thinned curve, as published code has it (FedMIA). Clopper-Pearson over the members
      (Carlini et al. 2022 made this the headline figure): it covers the TPR of the threshold used, not the error
      of that threshold's FPR, which a warning points to where fewer than 10 false positives fix it.
    * `balanced_accuracy`: the best over all thresholds, *chosen with the ground truth*, so above .5 even for scores
      that know nothing. Its interval is the two-sample Dvoretzky-Kiefer-Wolfowitz band, which holds for all
      thresholds at once and so pays for the choice.
    * `log_auc`: the area under the curve on log-log axes, see `Roc.log_area`.

    Time is that of sorting. Raises InputError for scores that are empty, not finite or not a row, an unknown
    convention, a rate not above 0, a level outside (0, 1).
    """
    _check(convention, fprs, level)
    members, nonmembers = scores_of(member_scores, "member_scores"), scores_of(nonmember_scores, "nonmember_scores")
    roc = roc_curve(members, nonmembers)
    return _audit(roc, delong(members, nonmembers, level), convention, fprs, level, roc.nonmembers)


def over_targets(
    pairs: Sequence[Pair],
    convention: Convention = "at_most",
    fprs: Sequence[float] = FPRS,
    level: float = 0.95,
    distinct: int | None = None,
) -> OverTargets:
    """Judge an attack on several targets, each a pair (member scores, non-member scores).

    `pooled` treats all targets' scores as one set with one threshold. With two targets or more, its AUC's interval
    takes the target as the unit: it covers other targets of such a federation, and is wide when there are few.
    The intervals of its TPRs are Clopper-Pearson on the pooled counts: they cover other members of these targets,
    each counted as independent, not other targets and not the error of the threshold. Where targets share their
    non-members, `distinct` says how many different ones there are: a warning is due by their number, since the same
    example scored for ten targets does not fix a threshold as well as ten examples do.

    `worst` is the index of the target with the highest TPR at the smallest FPR that allows each target at least 10
    false positives (if there is one), then with the highest AUC; the first of equals. Raises as `audit` does.
    """
    _check(convention, fprs, level)
    if not pairs:
        raise InputError("pairs: got no target; expected at least one pair of member and non-member scores")
    scores = pairs_of(pairs)
    targets = tuple(audit(m, n, convention, fprs, level) for m, n in scores)
    members, nonmembers = (np.concatenate(side) for side in zip(*scores, strict=True))
    auc = targets[0].auc if len(scores) == 1 else delong_clustered(scores, level)
    different = len(nonmembers) if distinct is None else distinct
    return OverTargets(
        targets=targets,
        pooled=_audit(roc_curve(members, nonmembers), auc, convention, fprs, level, different),
        mean_auc=float(np.mean([one.auc.value for one in targets])),
        mean_tpr_at_fpr={f: float(np.mean([one.tpr_at_fpr[f].value for one in targets])) for f in fprs},
        worst=_worst(targets, convention, fprs),
    )


def _check(convention: str, fprs: Sequence[float], level: float) -> None:
    if convention not in get_args(Convention):
        raise InputError(f"convention: got {convention!r}; expected 'at_most' or 'strict'")
    for fpr in fprs:
        if not 0 < fpr < math.inf:
            raise InputError(f"fprs: got {fpr}; expected false-positive rates above 0")
    check_level(level)


def _audit(
    roc: Roc, auc: Estimate, convention: Convention, fprs: Sequence[float], level: float, distinct: int
) -> Audit:
    return Audit(
        n_members=roc.members,
        n_nonmembers=roc.nonmembers,
        n_distinct_nonmembers=distinct,
        auc=auc,
        tpr_at_fpr={fpr: _tpr(roc, fpr, convention, level, distinct) for fpr in fprs},
        balanced_accuracy=_balanced_accuracy(roc, level),
        log_auc=roc.log_area(),
        roc=roc,
    )


def _tpr(roc: Roc, fpr: float, convention: Convention, level: float, distinct: int) -> TprEstimate:
    if convention == "at_most":
        point = int(np.searchsorted(roc.fpr, fpr, side="right")) - 1
    else:
        corners = roc.corners()
        point = int(corners[np.searchsorted(roc.fpr[corners], fpr, side="left") - 1])
    found, spent = int(roc.true_positives[point]), int(roc.false_positives[point])
    low, high = clopper_pearson(found, roc.members, level)
    return TprEstimate(
        value=found / roc.members,
        low=low,
        high=high,
        n=roc.members,
        false_positives=spent,
        threshold=float(roc.thresholds[point]),
        warning=_warning(fpr, convention, roc.nonmembers, spent, distinct),
    )


def _warning(fpr: float, convention: Convention, nonmembers: int, spent: int, distinct: int) -> str | None:
    allowed, rate = _allowed(fpr, distinct, convention), f"{100 * fpr:.4g} % FPR"
    need = f"{math.ceil(ENOUGH / fpr) + (convention == 'strict'):,} would allow {ENOUGH}"
    which = f"{distinct:,} {'different ' if distinct < nonmembers else ''}non-members"
    if allowed == 0:
        return f"{which} are too few for {rate}: no false positive is allowed; {need}"
    if allowed < ENOUGH:
        return f"{rate} rests on at most {allowed} of {which}; {need}"
    if convention == "at_most" and spent < ENOUGH:
        most = _allowed(fpr, nonmembers, convention)
        return f"non-members tie: {rate} allows {most:,} false positives, and no threshold spends over {spent}"
    return None


def _allowed(fpr: float, nonmembers: int, convention: Convention) -> int:
    """The largest count whose rate is at most (or below) `fpr`, compared as rates, so that 29 of 100 is 0.29."""
    count = min(nonmembers, int(fpr * nonmembers) + 1)
    while count / nonmembers > fpr or (convention == "strict" and count / nonmembers == fpr):
        count -= 1
    return count


def _balanced_accuracy(roc: Roc, level: float) -> Estimate:
    value = (1 + float(np.max(roc.tpr - roc.fpr))) / 2
    band = math.sqrt(math.log(2 / (1 - level)) / 2 * (1 / roc.members + 1 / roc.nonmembers)) / 2
    return Estimate(value, max(0.5, value - band), min(1.0, value + band), roc.members + roc.nonmembers)


def _worst(targets: tuple[Audit, ...], convention: Convention, fprs: Sequence[float]) -> int:
    fewest = min(one.n_nonmembers for one in targets)
    safe = [fpr for fpr in fprs if _allowed(fpr, fewest, convention) >= ENOUGH]
    found = [one.tpr_at_fpr[min(safe)].value if safe else 0.0 for one in targets]
    return max(range(len(targets)), key=lambda i: (found[i], targets[i].auc.value))
