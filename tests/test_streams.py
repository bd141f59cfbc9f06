"""Named streams: pure functions of their names."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsiege.streams import entropy, stream, torch_stream

PART = st.one_of(st.integers(-(10**6), 10**6), st.text(st.characters(codec="ascii"), max_size=8))


def test_equal_names_give_equal_numbers() -> None:
    assert stream(1, "client", 3, 4).random(5).tolist() == stream(1, "client", 3, 4).random(5).tolist()
    assert torch.equal(
        torch.rand(5, generator=torch_stream(1, "client", 3, 4)),
        torch.rand(5, generator=torch_stream(1, "client", 3, 4)),
    )


def test_each_part_of_a_name_counts() -> None:
    others = [
        entropy(2, "client", 3, 4),
        entropy(1, "server", 3, 4),
        entropy(1, "client", 4, 3),
        entropy(1, "client", 34),
        entropy(1, "client", 3),
        entropy(1, "client", 3, "4"),
        entropy(1, "client3", 4),
    ]
    assert len({entropy(1, "client", 3, 4), *others}) == len(others) + 1


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_different_names_differ(first: list[str | int], second: list[str | int]) -> None:
    assert (entropy(0, *first) == entropy(0, *second)) == (first == second)


def test_the_numbers_of_a_name_are_pinned() -> None:
    """Changing these values changes every published run: only with a new major version."""
    assert entropy(1, "client", 3, 4) == 44251747118591981240093337131505608658
    assert stream(1, "client", 3, 4).integers(1000, size=5).tolist() == [595, 403, 421, 606, 216]
    assert torch.randint(1000, (5,), generator=torch_stream(1, "client", 3, 4)).tolist() == [37, 307, 119, 24, 779]


def test_a_stream_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_stream(1, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_stream_is_no_neighbour_of_the_next() -> None:
    """Streams of consecutive clients are uncorrelated: 10,000 pairs, five standard deviations."""
    first, second = (stream(1, "client", 0, client).standard_normal(10_000) for client in (0, 1))
    assert abs(float((first * second).mean())) < 5 / 100
