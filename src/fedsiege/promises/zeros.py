"""The promise that most entries of an update are zero."""

import numpy as np

from fedsiege.defences.client.base import ClientDefence
from fedsiege.promises.base import Arrived, Finding, Floats, Promise, shrinks


class Zeros(Promise):
    """Of each larger tensor all but a share of entries are zero; those that equal the smallest kept may be more."""

    def __init__(self, share: float, spare: int) -> None:
        self.share, self.spare = share, spare
        self.words = f"share {share:g} of zeros in tensors of more than {spare} entries"

    def found(self, arrived: Arrived, level: float) -> Finding:  # noqa: ARG002 - a bound
        """The share of zeros in the tensor that has least of those that it should have."""
        worst: tuple[float, float, bool, str] | None = None
        for tensor, place in arrived.places():
            if tensor.size <= self.spare:
                continue
            kept = int(tensor.size * (1 - self.share))
            zeros = 1 - int(np.count_nonzero(arrived.update[place])) / tensor.size
            wanted = 1 - kept / tensor.size
            beyond = beyond_ties(arrived.update[place], arrived.slack[place]) > kept
            if worst is None or (beyond, wanted - zeros) > (worst[2], worst[1] - worst[0]):
                worst = (zeros, wanted, beyond, tensor.name)
        if worst is None:
            why = f"no tensor has more than {self.spare} entries, so that none had to have zeros"
            return Finding(False, False, 0.0, 0.0, 0.0, None, why)
        zeros, wanted, beyond, name = worst
        said = f"{zeros:.2%} of the entries of {name} are zero, at least {wanted:.2%} are promised"
        return Finding(beyond, True, zeros, wanted, wanted - zeros, None, said)

    def survives(self, later: ClientDefence) -> bool:
        """After what leaves zeros at zero."""
        return shrinks(later)


def beyond_ties(entries: Floats, slack: Floats) -> int:
    """How many entries are not zero, not counting all but one of those that may be as small as the smallest."""
    sizes = np.abs(entries)
    some = sizes > 0
    if not some.any():
        return 0
    smallest = (sizes + slack)[some].min()
    return 1 + int(np.count_nonzero((sizes - slack)[some] > smallest))
