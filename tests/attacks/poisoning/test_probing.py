"""What attacks that make membership visible are made of, against the same written out once more."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plain_scenes import CLASSES, SEED, TRAINING, federation, first, honest_rows, poisoner_of, shards, task_of
from probing_scenes import (
    BASELINES,
    adam,
    begun,
    naive,
    own,
    pass_order,
    plot,
    probe,
    sgd,
    targets,
    trained,
    wrong,
)

from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.attacks.poisoning.probing import (
    Prober,
    check_probe,
    from_all,
    mislabelled,
    own_of,
    parts,
    passed_over,
    references,
    stepped,
    targets_of,
)
from fedsiege.errors import InputError
from fedsiege.models.lstm import LSTM
from fedsiege.records import Examples
from fedsiege.registry import index
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.training import Training

HONEST: dict[str, Training] = {
    "sgd": TRAINING,
    "one step on all data": TRAINING.model_copy(update={"algorithm": "fedsgd"}),
    "adam": TRAINING.model_copy(update={"optimiser": "adam", "weight_decay": 0.1}),
    "clipped and augmented": TRAINING.model_copy(update={"clip": 1e-3, "augment": "crop_flip", "epochs": 3}),
}


@pytest.mark.parametrize("honest", HONEST)
def test_a_plain_step_is_minus_the_learning_rate_times_the_gradient_however_honest_clients_train(
    honest: str,
) -> None:
    found = stepped(probe(training=HONEST[honest]), targets(), "plain")
    torch.testing.assert_close(found, naive(begun(), targets(), sgd(TRAINING.lr)), rtol=1e-4, atol=1e-6)
    assert float(found[: trained()].norm()) > 0.01, "there is something to compare"


def test_the_step_of_an_optimiser_is_its_first_one() -> None:
    scene = probe(training=HONEST["adam"])
    found, gradient = stepped(scene, targets(), "optimiser"), -naive(begun(), targets(), sgd(1.0))[: trained()]
    by_hand = -TRAINING.lr * gradient / (gradient.abs() + 1e-8)
    told = gradient.abs() > 1e-5
    torch.testing.assert_close(found[: trained()][told], by_hand[told], rtol=1e-3, atol=1e-6)
    assert told.float().mean() > 0.8
    adams = naive(begun(), targets(), adam(TRAINING.lr))
    torch.testing.assert_close(found[: trained()][told], adams[: trained()][told], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[trained() :], adams[trained() :])


def test_the_first_step_of_sgd_with_momentum_is_a_plain_one() -> None:
    found = stepped(probe(training=HONEST["clipped and augmented"]), targets(), "optimiser")
    assert torch.equal(found, stepped(probe(), targets(), "plain"))


@pytest.mark.parametrize("step", ["plain", "optimiser"])
def test_a_learning_rate_of_its_own_goes_before_the_rounds(step: Any) -> None:
    scene = probe(lr=0.02)
    for lr, expected in ((None, 0.02), (0.5, 0.5)):
        by_hand = naive(begun(), targets(), sgd(expected))
        torch.testing.assert_close(stepped(scene, targets(), step, lr), by_hand, rtol=1e-4, atol=1e-6)
        batches = pass_order(9)
        known = sgd(expected) if step == "plain" else sgd(expected, momentum=0.9, weight_decay=5e-4)
        by_hand = naive(begun(), targets(), known, batches)
        torch.testing.assert_close(passed_over(scene, targets(), step, lr), by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", ["plain", "optimiser"])
def test_a_pass_is_one_epoch_in_batches_of_the_honest_clients_size(step: Any) -> None:
    known = sgd(0.1) if step == "plain" else sgd(0.1, momentum=0.9, weight_decay=5e-4)
    by_hand = naive(begun(), own(), known, pass_order(34, number=2))
    torch.testing.assert_close(passed_over(probe(number=2), own(), step), by_hand, rtol=1e-3, atol=1e-5)
    assert len(pass_order(34)) == 5


def test_a_pass_is_honest_training_for_an_epoch_or_plain_in_everything() -> None:
    honest = TRAINING.model_copy(
        update={"augment": "crop_flip", "clip": 0.5, "optimiser": "adam", "epochs": 3, "weight_decay": 0.1}
    )
    scene = probe(training=honest)
    alike = scene.train(own(), scene.rng("pass"), training=honest.model_copy(update={"epochs": 1}))
    assert torch.equal(passed_over(scene, own(), "optimiser"), alike)
    assert torch.equal(passed_over(scene, own(), "plain"), passed_over(probe(), own(), "plain"))


@pytest.mark.parametrize("step", ["plain", "optimiser"])
def test_where_honest_clients_take_one_step_a_pass_is_that_step(step: Any) -> None:
    scene = probe(training=HONEST["one step on all data"])
    torch.testing.assert_close(passed_over(scene, own(), step), stepped(scene, own(), "plain"))


def test_wrong_labels_are_never_the_truth_and_each_other_class_is_as_likely() -> None:
    asked = targets(30_000)
    made = mislabelled(probe(targets=asked))
    assert (made.ids == asked.ids).all()
    assert torch.equal(made.x, asked.x)
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    counts.index_put_((asked.y, made.y), torch.tensor(1), accumulate=True)
    assert counts.diagonal().tolist() == [0] * CLASSES
    for label, row in enumerate(counts):
        expected = int(row.sum()) / (CLASSES - 1)
        others = row[torch.arange(CLASSES) != label]
        assert (others - expected).abs().max() < 5 * expected**0.5


def test_of_two_classes_the_wrong_one_is_the_other_one() -> None:
    asked = replace(targets(), y=targets().y % 2)
    assert torch.equal(mislabelled(probe(targets=asked, classes=2)).y, 1 - asked.y)


def test_wrong_labels_are_the_runs_and_not_the_rounds_or_the_attackers() -> None:
    drawn = mislabelled(probe())
    assert torch.equal(drawn.y, wrong().y)
    for other in (probe(number=4), probe((0,)), probe(start=begun() + 1), probe(lr=0.7)):
        assert torch.equal(mislabelled(other).y, drawn.y)
    assert not torch.equal(mislabelled(probe(seed=SEED + 1)).y, drawn.y)


def test_every_shuffle_is_a_draw_of_its_own() -> None:
    asked = targets(400)
    drawn = [mislabelled(probe(targets=asked), shuffle).y for shuffle in range(5)]
    for first_of_two in range(5):
        for second in range(first_of_two):
            alike = float((drawn[first_of_two] == drawn[second]).float().mean())
            assert abs(alike - 1 / 3) < 0.12, "independent draws of three classes agree in a third of them"


def test_own_data_is_all_attackers_shards_one_after_the_other() -> None:
    found = own_of(probe((1, 3)))
    assert list(found.ids) == [*shards()[1].ids, *shards()[3].ids]
    assert torch.equal(found.x, own().x)
    assert torch.equal(found.y, own().y)


@pytest.mark.parametrize("most", [34, 35, 1000, None])
def test_own_data_that_is_not_more_than_asked_for_is_all_of_it(most: int | None) -> None:
    assert list(own_of(probe((1, 3)), most).ids) == list(own().ids)


def test_a_part_of_own_data_is_drawn_once_for_the_run_from_all_attackers() -> None:
    found, everything = own_of(probe(), 15), own()
    places = [list(everything.ids).index(one) for one in found.ids]
    assert len(found) == 15
    assert places == sorted(places)
    assert torch.equal(found.y, everything.y[places])
    assert torch.equal(found.x, everything.x[places])
    assert {one.partition(".")[0] for one in found.ids} == {"2", "4"}
    assert places != list(range(15))
    assert list(own_of(probe(number=3), 15).ids) == list(found.ids)
    assert list(own_of(probe(seed=SEED + 1), 15).ids) != list(found.ids)
    drawn = np.zeros(34)
    for seed in range(400):
        drawn[[list(everything.ids).index(one) for one in own_of(probe(seed=seed), 15).ids]] += 1
    assert abs(drawn - 400 * 15 / 34).max() < 50, "each example as likely"


def lone(m: int) -> Any:
    """A round with one attacker, who has m examples."""
    return probe((1,), shards=(shards()[1].take(np.arange(m)),), start=task_of().state.clone())


@pytest.mark.parametrize(
    ("m", "sizes"), [(0, []), (1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (8, [3, 3, 2])]
)
def test_a_lone_attacker_cuts_its_data_in_three_and_trains_on_each(m: int, sizes: list[int]) -> None:
    scene = lone(m)
    rows, pieces = references(scene), parts(scene.shards[0])
    assert [len(piece) for piece in pieces] == sizes
    assert rows.shape == (len(sizes), len(scene.start))
    assert rows.dtype == scene.start.dtype
    assert sorted(one for piece in pieces for one in piece.ids) == sorted(scene.shards[0].ids)
    for row, piece, place in zip(rows, pieces, range(3), strict=False):
        assert list(piece.ids) == list(scene.shards[0].ids[place::3])
        assert torch.equal(row, lone(m).honest(0, piece))
    assert scene.counters == {"went_by_own_updates": 1}


def test_several_attackers_go_by_their_own_honest_updates() -> None:
    scene = probe((1, 3), start=task_of().state.clone())
    assert torch.equal(references(scene), honest_rows()[[1, 3]])
    assert scene.counters == {"went_by_own_updates": 1}


@pytest.mark.parametrize("clients", [(1,), (1, 3)])
def test_who_sees_honest_updates_goes_by_them_alone(clients: tuple[int, ...]) -> None:
    seen = torch.randn(3, len(begun()))
    scene = probe(clients, honest_rows=seen)
    assert torch.equal(references(scene), seen)
    assert scene.counters == {}


def test_no_honest_update_in_sight_is_as_good_as_none_seen() -> None:
    scene = probe((1,), honest_rows=torch.empty(0, len(begun())))
    assert references(scene).shape == (3, len(begun()))


def test_the_same_row_comes_from_each_attacker() -> None:
    row = torch.arange(4.0)
    assert torch.equal(from_all(probe((0, 1, 3)), row), row.repeat(3, 1))


@pytest.mark.parametrize(
    "asked", [None, Examples(np.array([], dtype=str), torch.empty(0, 1, 8, 8), torch.empty(0))]
)
def test_a_round_in_which_nothing_is_asked_is_refused(asked: Examples | None) -> None:
    with pytest.raises(InputError, match=r"^targets: got no examples to ask about; expected some"):
        targets_of(probe(targets=asked))


def test_what_is_asked_about_is_what_the_round_says() -> None:
    scene = probe()
    assert targets_of(scene) is scene.targets


@pytest.mark.parametrize("name", BASELINES)
def test_runs_in_which_no_membership_can_show_are_refused_by_every_baseline(name: str) -> None:
    made = poisoner_of(name)
    assert isinstance(made, Prober)
    assert made.probes
    assert not made.plants
    made.check(plot())
    made.check(plot(sizes=()))
    made.check(plot(compromised=(0,)))
    words = Task(LSTM(width=4, layers=1).build((3,), 5), sequences=True)
    with pytest.raises(InputError, match="these have one at every position"):
        made.check(plot(task=words))
    with pytest.raises(InputError, match="needs wrong labels, and the data has 1 class; expected 2 or more"):
        made.check(plot(classes=1))
    with pytest.raises(InputError, match=r"^attacks: got none, so that no membership is asked about"):
        made.check(plot(targets=0))
    with pytest.raises(InputError, match=r"^compromised: got all 6 clients, .*expected 5 at most"):
        made.check(plot(compromised=tuple(range(6))))
    made.check(plot(compromised=tuple(range(5))))


@pytest.mark.parametrize("name", BASELINES)
def test_only_attackers_that_see_single_updates_are_refused_under_secure_aggregation(name: str) -> None:
    full = poisoner_of(name)
    if name not in ("agrevader_euclidean", "adaptive_atm"):
        assert not full.sees_honest
        full.check(plot(secure_aggregation=True))
        return
    assert full.sees_honest
    with pytest.raises(InputError, match=r"^knowledge: got full, and secure_aggregation.*expected partial"):
        full.check(plot(secure_aggregation=True))
    partial = poisoner_of(name, knowledge="partial")
    assert not partial.sees_honest
    partial.check(plot(secure_aggregation=True))


def test_knowledge_is_given_by_whoever_checks() -> None:
    check_probe(plot(secure_aggregation=True))
    with pytest.raises(InputError, match=r"^knowledge: got full"):
        check_probe(plot(secure_aggregation=True), "full")


def sent_by(name: str, **fields: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """What a baseline sends in a round with honest updates around zero, and what it counts."""
    rows = 5 * torch.randn(4, len(begun()), generator=torch.Generator().manual_seed(8))
    scene = probe(honest_rows=rows, **fields)
    return poisoner_of(name).poison_updates(scene), scene.counters


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_sends_a_row_from_each_attacker_and_counts_each(name: str) -> None:
    for clients in ((2,), (0, 1, 3)):
        sent, counters = sent_by(name, clients=clients)
        assert sent.shape == (len(clients), len(begun()))
        assert sent.isfinite().all()
        assert sent.dtype == torch.float32
        assert counters[poisoner_of(name).proof] == len(clients)
        if name != "passive":
            assert all(torch.equal(row, sent[0]) for row in sent)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_sends_the_same_bytes_for_the_same_seed_and_no_others_for_another_order(name: str) -> None:
    torch.manual_seed(1)
    once, counted = sent_by(name)
    torch.manual_seed(2)
    again, counted_again = sent_by(name)
    assert torch.equal(once, again)
    assert counted == counted_again
    assert not torch.equal(once, sent_by(name, seed=SEED + 1)[0]) or name == "gradient_ascent"


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_says_what_it_does_not_do_in_numbers_without_names(name: str) -> None:
    _, counters = sent_by(name)
    told = poisoner_of(name).told(counters)
    assert told
    assert all(np.isfinite(list(told.values())))
    assert all(n == 0 for n in poisoner_of(name).told({}).values())


NUMBERS: dict[str, list[float]] = {
    "lr": [0.0, -0.1, math.inf, math.nan],
    "factor": [0.0, -1.0, math.inf, math.nan],
    "cover": [-0.1, math.inf, math.nan],
    "descent": [-0.1, math.inf, math.nan],
    "misled": [-0.1, math.inf, math.nan],
    "mask": [0, -3],
    "shuffles": [0],
    "iterations": [0],
    "trim": [-1],
}
"""What the fields of baselines cannot be."""

FIELDS = [
    (name, field.name)
    for name in BASELINES
    for field in index()["poisoning", name].fields
    if field.name not in ("step", "knowledge", "statistic")
]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_what_no_number_of_a_baseline_can_be_is_refused_by_name(name: str, field: str) -> None:
    for value in NUMBERS[field]:
        with pytest.raises(InputError, match=rf"adversary\.{field}: got "):
            poisoner_of(name, **{field: value})


@pytest.mark.parametrize("name", BASELINES)
def test_words_that_a_baseline_does_not_know_are_refused_by_name(name: str) -> None:
    for field in ("step", "knowledge", "statistic"):
        if hasattr(poisoner_of(name), field):
            with pytest.raises(InputError, match=rf"adversary\.{field}: got "):
                poisoner_of(name, **{field: "any"})


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_attacks_a_federation_in_its_rounds(name: str) -> None:
    campaign = Campaign(poisoner_of(name), "attack", (1, 3), (2, 4), targets=targets())
    done = list(federation(campaign=campaign).run(first()))
    for one in done:
        attacked = one.number in (2, 4)
        assert one.counters["adversary"]["attackers"] == (2 if attacked else 0)
        assert one.attackers == ((1, 3) if attacked else ())
        assert one.end.isfinite().all()
    counted = done[1].counters["adversary"]
    assert counted[poisoner_of(name).proof] == 2 or counted["fallbacks"] == 1


def test_the_streams_of_the_pass_and_of_the_labels_are_the_seeds() -> None:
    assert not np.array_equal(
        stream(SEED, "adversary", 1, "pass").permutation(34), stream(SEED, "adversary", 2, "pass").permutation(34)
    )
    once, later = (passed_over(probe(number=number), own(), "plain") for number in (1, 2))
    assert not torch.equal(once, later)
