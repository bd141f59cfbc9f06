"""An engine on which whoever depends on the order of the clients is found out."""

from collections.abc import Iterator

import numpy as np

from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Answer, Models
from fedsiege.records import NOTHING, Memory


class Shuffled(LocalEngine):
    """Visits the clients in another order, answers in theirs."""

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory = NOTHING
    ) -> Iterator[Answer]:
        order = np.random.default_rng(number).permutation(invited).tolist()
        found = {c: next(LocalEngine().answers(federation, number, [c], models, memory)) for c in order}
        yield from (found[client] for client in sorted(found))
