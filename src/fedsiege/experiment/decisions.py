"""How often the decision of poisoning membership inference is right: in each round, in the last, at its best.

The papers call an example a member where the global model gets it right, and report the best of all rounds. Which
round that is nobody knows without the truth: an attacker gets what the last rounds give.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsiege.attacks.membership.base import recordings
from fedsiege.attacks.poisoning.probing import correct
from fedsiege.data.candidates import anybodys
from fedsiege.experiment.integrity import rate
from fedsiege.experiment.prepare import Prepared
from fedsiege.trace import Trace

LAST = 20
"""So many recorded rounds at the end are averaged over."""


def decisions(prepared: Prepared, trace: Trace) -> dict[str, Any] | None:
    """What result.json says of the decision `correct = member`, from the first round of attack on.

    None where nobody makes membership visible, in a null test (which has no members), and where no attack of the
    run had the probabilities recorded that the decision needs.
    """
    campaign = prepared.campaign
    if campaign is None or not campaign.poisoner.probes or prepared.experiment.candidates.null:
        return None
    if "outputs" not in recordings(planned.attack for planned in prepared.attacks):
        return None
    owned = anybodys(prepared.candidates.audits)
    columns = np.searchsorted(trace.ids, sorted(owned))
    truth = np.array([owned[identity] for identity in sorted(owned)])
    since = [t for t, number in enumerate(trace.rounds) if number >= campaign.rounds[0]]
    if not since:
        return None
    right = np.stack([correct(trace.global_loss(t)[columns], trace.global_top(t)[columns]) == truth for t in since])
    return judged(right, [trace.rounds[t] for t in since], truth)


def judged(right: NDArray[np.bool_], rounds: list[int], truth: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of decisions that are right or not [T, m], in rounds of these numbers [T]; `truth` [m]: member.

    The mean over the last rounds has Wilson's interval of as many examples as there are, which is too wide, if
    anything: an example is decided about several times. It covers other examples, not other seeds. The best round
    has none: by chance alone the best of many lies above the intervals of single ones.
    """
    accuracy, m = right.mean(1), len(truth)
    best = int(accuracy.argmax())
    last = right[-LAST:]
    return {
        "members": int(truth.sum()),
        "nonmembers": int((~truth).sum()),
        "chance": float(max(truth.mean(), 1 - truth.mean())),
        "rounds": rounds,
        "accuracy": accuracy.tolist(),
        "best": {"round": rounds[best], "value": float(accuracy[best]), "low": None, "high": None, "n": m},
        "last": {
            "rounds": len(last),
            **rate(float(last.mean()), m),
            "of_members": float(last[:, truth].mean()) if truth.any() else None,
            "of_nonmembers": float(last[:, ~truth].mean()) if not truth.all() else None,
        },
    }
