"""SeqMIA: a recurrent network reads what the models say of an example, round after round."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedsiege.attacks.membership.base import MembershipAttack, by_round, series
from fedsiege.attacks.membership.recurrent import Learnt, Sequences, learn
from fedsiege.errors import InputError
from fedsiege.registry import register
from fedsiege.streams import stream
from fedsiege.view import Flags, Known, Labels, Signal, Values, View

READ: tuple[Signal, ...] = ("loss", "top", "spread", "entropy", "modified_entropy")
"""The signals of a time step, in this order."""

PART = 2**26
"""Values of sequences that are held at a time."""


@register("seqmia")
class SeqMIA(MembershipAttack):
    """A network learns how members' losses and confidences develop over the rounds, and scores by the log-odds.

    Per recorded round it reads the loss, the highest probability, the deviation of the probabilities over classes,
    their entropy and modified entropy. An LSTM (50 wide) with attention over its states is trained for 150 epochs.
    The original distils the attacked model to obtain a sequence; here the rounds' own models are one.

    What it is trained on in a federation is not published. `shadow` is true to the original: a federation that the
    adversary trains itself, on data of its own and with the same schedule, whose members it knows; its recorded
    rounds are taken for those with the same numbers. `labelled` is an upper bound and no attack: it is trained on
    the truth about half of the candidates and judged on the rest. Scaling each signal by its mean and deviation
    over the training sequences is ours, as is the limit on their number. A round that a target missed repeats its
    upload before (the first rounds: its first), as an observer would still hold that; `rounds_carried` counts them.

    Paper: Li et al., SeqMIA, CCS 2024, arXiv 2407.15098.
    """

    title = "SeqMIA"
    shadows_asked = False
    needs = frozenset(READ)
    multi_round = True
    single_update = False
    min_rounds = 2

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """`server` reads the target's uploaded models; the others read the global models."""
    trained_on: Literal["shadow", "labelled"] = "shadow"
    """Whose members it learns from: the adversary's own federations', or (an upper bound) half of the real ones."""
    shadows: Annotated[int, Field(ge=1)] = 1
    """Shadow federations to train; none are with `labelled`."""
    updates: Literal["sent", "denoised", "coalition", "insider"] = "sent"
    """Uploads are looked at as sent, without shifts of their tails, as a coalition's mean, or without its noise."""
    sequences: Annotated[int, Field(ge=2)] = 2000
    """Train on so many sequences at most, drawn evenly from members and non-members."""
    epochs: Annotated[int, Field(ge=1)] = 150
    """Passes over the training sequences."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Draws the training sequences, the network's first weights and the order of its batches."""

    @property
    def shadows_wanted(self) -> int:
        """Shadow federations that it asks its view for."""
        return self.shadows if self.trained_on == "shadow" else 0

    @property
    def truth_wanted(self) -> bool:
        """Whether it is told the truth about half of the candidates."""
        return self.trained_on == "labelled"

    @property
    def heading(self) -> str:
        """Its name in tables and figures; an upper bound says so."""
        told = super().heading
        return told if self.trained_on == "shadow" else f"{told}, trained on labelled candidates"

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The log-odds of being a member [targets, m]; in `shadow` mode one network serves all targets."""
        used = {target: series(self, view.of(target), target) for target in targets}
        shared = self._from_shadows(view) if self.trained_on == "shadow" else None
        m = view.own("loss", targets[0], used[targets[0]][0]).size
        some = max(1, PART // (m * len(view.recorded) * len(READ)))
        scores = np.zeros((len(targets), m))
        for start in range(0, len(targets), some):
            there = list(targets[start : start + some])
            for i, found in enumerate(sequences_of(view, [(target, np.arange(m)) for target in there]), start):
                part = view.of(targets[i])
                learnt, number = shared or self._from_labelled(view.known(targets[i]), found)
                scores[i] = learnt.log_odds(found)
                part.count("sequences_learnt", number)
                part.count("rounds_carried", len(view.recorded) - len(used[targets[i]]))
        return scores

    def _from_shadows(self, view: View) -> tuple[Learnt, int]:
        """A network trained on the shadow federations' own candidates, and on how many of them."""
        views = view.shadow_views(self.shadows)[: self.shadows]
        for _, own in views:
            if own.recorded != view.recorded:
                raise InputError(
                    f"attack seqmia: a shadow federation recorded the rounds {own.recorded}; expected those of the "
                    f"real one, {view.recorded}"
                )
        asked = [[known for known in shadow.known if _took_part(own, known.target)] for shadow, own in views]
        members = np.concatenate([np.zeros(0, np.bool_), *(known.members for there in asked for known in there)])
        rows = self._drawn(members)
        parts: list[Sequences] = []
        start = 0
        for there, (_, own) in zip(asked, views, strict=True):
            drawn: list[tuple[int, Labels]] = []
            for known in there:
                end = start + len(known.columns)
                drawn.append((known.target, known.columns[rows[(rows >= start) & (rows < end)] - start]))
                start = end
            parts += sequences_of(own, drawn)
        return learn(np.concatenate(parts), members[rows], self.epochs, self.seed), len(rows)

    def _from_labelled(self, known: Known, found: Sequences) -> tuple[Learnt, int]:
        """A network trained on those of a target's sequences [m, T, 5] whose truth is known, and on how many."""
        rows = self._drawn(known.members)
        return learn(found[known.columns[rows]], known.members[rows], self.epochs, self.seed), len(rows)

    def _drawn(self, members: Flags) -> Labels:
        """Which examples to train on, increasing: half of `sequences` of either kind, or all that there are."""
        kinds = [np.flatnonzero(members), np.flatnonzero(~members)]
        if not all(map(len, kinds)):
            raise InputError(
                f"attack seqmia: got {len(kinds[0])} members and {len(kinds[1])} non-members to learn from; "
                "expected some of each"
            )
        rng = stream(self.seed, "seqmia", "sequences")
        most = self.sequences // 2
        return np.sort(np.concatenate([rng.choice(kind, min(most, len(kind)), replace=False) for kind in kinds]))


def sequences_of(view: View, asked: Sequence[tuple[int, Labels]]) -> list[Sequences]:
    """Sequences [n, T, 5] of each target's n columns over all T recorded rounds; a round is read once.

    A round that a target missed repeats the one before that it took part in, or else its first.
    """
    taken = [view.rounds(target) for target, _ in asked]
    every = np.arange(len(view.recorded))
    held = [np.array(own)[np.maximum(np.searchsorted(own, every, side="right") - 1, 0)] for own in taken]
    found = [np.empty((len(columns), len(every), len(READ)), dtype=np.float32) for _, columns in asked]
    for t, places in by_round(taken):
        for s, signal in enumerate(READ):
            values = view.each(signal, [asked[i][0] for i in places], t)
            for i, row in zip(places, values, strict=True):
                found[i][:, held[i] == t, s] = row[asked[i][1], None]
    return found


def _took_part(view: View, target: int) -> bool:
    """Whether there is any recorded round of a target to read."""
    return not view.sees_updates or any(target in view.present(t) for t in range(len(view.recorded)))
