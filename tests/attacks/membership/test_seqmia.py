"""SeqMIA: the network against a loop over time steps, the sequences against a loop over rounds."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedsiege.attacks.membership import seqmia
from fedsiege.attacks.membership.recurrent import Attentive, Learnt, learn, rate
from fedsiege.attacks.membership.seqmia import READ, SeqMIA, sequences_of
from fedsiege.errors import InputError
from fedsiege.metrics.roc import roc_curve
from fedsiege.scoring import score
from fedsiege.view import OF_THE_GLOBAL_MODEL, ArrayEvidence, Background, Known, Shadow, Vantage, View

Row = NDArray[np.float64]
T, K = 4, 3


# --- the network


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def attended(network: Attentive, sequence: Row) -> list[float]:
    """Logits of one sequence [T, signals], step by step and unit by unit, with the network's own weights."""
    weight = {name: tensor.detach().double().numpy() for name, tensor in network.named_parameters()}
    width = len(weight["lstm.weight_hh_l0"]) // 4
    h, c = np.zeros(width), np.zeros(width)
    states = []
    for step in sequence:
        gates = weight["lstm.weight_ih_l0"] @ step + weight["lstm.weight_hh_l0"] @ h
        gates = gates + weight["lstm.bias_ih_l0"] + weight["lstm.bias_hh_l0"]
        enter, forget, cell, leave = gates.reshape(4, width)
        c = np.array([sigmoid(forget[u]) * c[u] + sigmoid(enter[u]) * math.tanh(cell[u]) for u in range(width)])
        h = np.array([sigmoid(leave[u]) * math.tanh(c[u]) for u in range(width)])
        states.append(h)
    energies = [math.exp(float(states[-1] @ state)) for state in states]
    context = sum(e / sum(energies) * state for e, state in zip(energies, states, strict=True))
    both = np.concatenate([states[-1], context])
    logits: list[float] = (weight["decide.weight"] @ both + weight["decide.bias"]).tolist()
    return logits


def test_the_network_is_an_lstm_whose_last_state_attends_to_all() -> None:
    torch.manual_seed(0)
    network = Attentive(5).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # far from linear
    assert network.lstm.hidden_size == 50
    assert network.lstm.num_layers == 1
    sequences = np.random.default_rng(0).normal(size=(6, 7, 5))
    logits = network(torch.as_tensor(sequences).transpose(0, 1)).detach().numpy()
    np.testing.assert_allclose(logits, [attended(network, one) for one in sequences], rtol=1e-9)


def test_scores_are_log_odds_of_scaled_sequences() -> None:
    torch.manual_seed(1)
    network = Attentive(2).double()
    mean, deviation = np.array([1.0, -2.0]), np.array([0.5, 4.0])
    sequences = np.random.default_rng(1).normal(size=(5, 3, 2)).astype(np.float32)
    odds = Learnt(network, mean, deviation).log_odds(sequences)
    for value, one in zip(odds, sequences.astype(np.float64), strict=True):
        logits = attended(network, (one - mean) / deviation)
        shares = np.exp(logits) / np.exp(logits).sum()
        assert value == pytest.approx(math.log(shares[1] / shares[0]), rel=1e-9)


def test_many_sequences_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsiege.attacks.membership import recurrent

    learnt = Learnt(Attentive(5).double(), np.zeros(5), np.ones(5))
    sequences = np.random.default_rng(2).normal(size=(23, 4, 5)).astype(np.float32)
    whole = learnt.log_odds(sequences)
    monkeypatch.setattr(recurrent, "TOGETHER", 10)
    np.testing.assert_allclose(learnt.log_odds(sequences), whole, rtol=1e-12)


def test_the_step_size_falls_by_a_tenth_every_ten_epochs_to_a_floor() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=10, gamma=0.9)
    for epoch in range(400):
        assert rate(epoch) == pytest.approx(max(5e-4, optimiser.param_groups[0]["lr"]), rel=1e-9)
        optimiser.step()
        schedule.step()
    assert rate(399) == 5e-4


def toy(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Sequences of which the rising ones are members'; their levels say nothing."""
    rng = np.random.default_rng(seed)
    members = rng.random(n) < 0.5
    ramp = np.linspace(-1, 1, 6)[None, :, None] * np.where(members, 1.0, -1.0)[:, None, None]
    sequences = 100 + 7 * (ramp + 2 * rng.normal(size=(n, 1, 5)) + 0.3 * rng.normal(size=(n, 6, 5)))
    return sequences.astype(np.float32), members


def test_it_learns_an_order_in_time() -> None:
    learnt = learn(*toy(600), epochs=20, seed=0)
    sequences, members = toy(1000, seed=1)
    assert roc_auc_score(members, learnt.log_odds(sequences)) > 0.98
    assert roc_auc_score(members, learnt.log_odds(np.ascontiguousarray(sequences[:, ::-1]))) < 0.02


def test_scaling_uses_the_moments_of_the_training_sequences() -> None:
    sequences, members = toy(50)
    sequences[:, :, 3] = 5.0
    learnt = learn(sequences, members, epochs=1, seed=0)
    flat = sequences.astype(np.float64).reshape(-1, 5)
    np.testing.assert_allclose(learnt.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.delete(learnt.deviation, 3), np.delete(flat.std(axis=0), 3), rtol=1e-9)
    assert learnt.deviation[3] == 1.0
    assert np.isfinite(learnt.log_odds(sequences)).all()
    other = learn((3 * sequences - 8).astype(np.float32), members, epochs=1, seed=0)
    np.testing.assert_allclose(
        other.log_odds((3 * sequences - 8).astype(np.float32)), learnt.log_odds(sequences), rtol=1e-3, atol=1e-3
    )


def test_training_draws_from_its_own_seed_and_leaves_torch_as_it_was() -> None:
    sequences, members = toy(250)
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = learn(sequences, members, epochs=2, seed=3).log_odds(sequences)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            again = learn(sequences, members, epochs=2, seed=3).log_odds(sequences)
            np.testing.assert_array_equal(again, first)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert not np.array_equal(learn(sequences, members, epochs=2, seed=4).log_odds(sequences), first)
    one, other = (learn(sequences, members, epochs=0, seed=seed).log_odds(sequences) for seed in (3, 4))
    assert not np.array_equal(one, other), "the first weights are drawn from the seed as well"


# --- the sequences


def evidence_of(
    m: int, members: NDArray[np.bool_] | None = None, seed: int = 0, present: Any = None, gain: float = 0.3
) -> ArrayEvidence:
    """All that SeqMIA reads; client 0's members [m] are learnt faster by `gain` per round."""
    rng = np.random.default_rng(seed)
    present = np.ones((T, K), dtype=np.bool_) if present is None else present
    hard = rng.normal(size=m)
    speed = np.zeros((K, m)) if members is None else gain * members * (np.arange(K) == 0)[:, None]
    ramp = np.arange(T)[:, None, None]
    arrays: dict[str, Any] = {"present": present}
    for signal in READ:
        arrays[signal] = hard + (0.3 + speed) * ramp + 0.5 * rng.normal(size=(T, K, m))
        arrays[signal][~present] = np.nan
        arrays[OF_THE_GLOBAL_MODEL[signal]] = hard + speed[0] * ramp[:, 0] + 0.5 * rng.normal(size=(T, m))
    return ArrayEvidence(arrays)


def shadow_of(n: int, seed: int, gain: float = 0.3, targets: int = 1, real: int = 10) -> Shadow:
    """A federation of which the first n columns are the adversary's own; half of them are members, shuffled."""
    members = np.concatenate([np.random.default_rng(seed).permutation(n) % 2 == 0, np.zeros(real, dtype=np.bool_)])
    known = tuple(Known(k, np.arange(n), members[:n]) for k in range(targets))
    return Shadow(evidence_of(n + real, members, seed + 1000, gain=gain), np.arange(n, n + real), known)


def test_a_missed_round_repeats_the_upload_before_it_or_the_first() -> None:
    present = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1]], dtype=bool)
    evidence = evidence_of(6, present=present)
    view = View(evidence, "server")
    columns = np.array([4, 0, 5])
    found = sequences_of(view, [(0, columns), (2, columns[:1]), (1, columns)])
    held = {0: [1, 1, 1, 3], 1: [0, 0, 0, 3], 2: [0, 1, 2, 3]}
    for target, asked, sequences in ((0, columns, found[0]), (2, columns[:1], found[1]), (1, columns, found[2])):
        assert sequences.dtype == np.float32
        assert sequences.shape == (len(asked), T, 5)
        for j, column in enumerate(asked):
            for step, t in enumerate(held[target]):
                for s, signal in enumerate(("loss", "top", "spread", "entropy", "modified_entropy")):
                    expected = getattr(evidence, signal)(t)[target, column]
                    assert sequences[j, step, s] == np.float32(expected)


def test_elsewhere_the_global_models_are_read() -> None:
    evidence = evidence_of(4, present=np.zeros((T, K), dtype=bool))
    (found,) = sequences_of(View(evidence, "client"), [(1, np.array([3]))])
    assert found[0, :, 2].tolist() == [np.float32(evidence.global_spread(t)[3]) for t in range(T)]


def quick(**fields: Any) -> SeqMIA:
    return SeqMIA(**{"epochs": 3, **fields})


def test_shadow_one_network_serves_all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(sequences: Any, members: Any, epochs: int, seed: int) -> Learnt:
        calls.append(len(sequences))
        return learn(sequences, members, epochs, seed)

    monkeypatch.setattr(seqmia, "learn", counting)
    present = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 0]], dtype=bool)
    evidence, background = evidence_of(10, present=present), Background((shadow_of(80, 0, targets=2),))
    view = View(evidence, "server", background)
    scores = quick().score_targets(view, [1, 0, 2])
    assert calls == [160]
    assert view.of(1).counters == {"rounds_used": 3, "sequences_learnt": 160, "rounds_carried": 1}
    monkeypatch.setattr(seqmia, "PART", 1)  # one target at a time
    np.testing.assert_array_equal(quick().score_targets(View(evidence, "server", background), [1, 0, 2]), scores)
    for row, target in zip(scores, [1, 0, 2], strict=True):
        alone = View(evidence, "server", background)
        np.testing.assert_array_equal(quick().score(alone, target), row)
        assert alone.counters == view.of(target).counters


def test_what_it_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right columns of the right clients of the right federations, evenly from members and others."""
    seen: list[tuple[Any, Any]] = []

    def spying(sequences: Any, members: Any, epochs: int, seed: int) -> Learnt:
        seen.append((sequences, members))
        return Learnt(Attentive(5).double(), np.zeros(5), np.ones(5))

    monkeypatch.setattr(seqmia, "learn", spying)
    shadows = []
    for number in range(3):
        made = shadow_of(20, number)
        members = np.arange(20) < 6
        known = (
            Known(0, np.arange(20)[::-1].copy(), members),
            Known(2, np.arange(10, 20), members[:10]),
            Known(1, np.arange(5), members[:5]),
        )
        present = np.ones((T, K), dtype=np.bool_)
        present[:, 1] = number == 0  # in the others client 1 never took part
        shadows.append(Shadow(evidence_of(30, seed=number, present=present), made.asked, known))
    view = View(evidence_of(10), "server", Background(tuple(shadows)))
    quick(shadows=2, sequences=1000).score(view, 0)
    ((sequences, truth),) = seen
    owners = [(shadow, known) for shadow in shadows[:2] for known in shadow.known]
    owners = [(shadow, known) for shadow, known in owners if shadow is shadows[0] or known.target != 1]
    expected = [
        [float(shadow.evidence.entropy(t)[known.target, column]) for t in range(T)]
        for shadow, known in owners
        for column in known.columns
    ]
    np.testing.assert_array_equal(sequences[:, :, 3], np.array(expected, dtype=np.float32))
    np.testing.assert_array_equal(truth, np.concatenate([known.members for _, known in owners]))
    quick(shadows=3, sequences=20).score(view, 0)
    sequences, truth = seen[1]
    assert (len(truth), truth.sum()) == (20, 10)
    assert len(np.unique(sequences[:, 0, 0])) == 20
    quick(shadows=3, sequences=20, seed=1).score(view, 0)
    assert not np.array_equal(seen[2][0], sequences)
    # Under a vantage on global models every client's candidates are read, who took part or not.
    quick(shadows=3, sequences=1000, vantage="client").score(View(evidence_of(10), "client", view.background), 0)
    assert len(seen[3][1]) == 3 * 35


def test_labelled_each_target_learns_from_its_own_truth() -> None:
    members = np.arange(60) % 3 == 0
    evidence = evidence_of(60, members)
    known = (
        Known(0, np.array([3, 5, 6, 10, 11, 59]), members[[3, 5, 6, 10, 11, 59]]),
        Known(2, np.arange(8)[::-1].copy(), members[:8][::-1].copy()),
    )
    view = View(evidence, "server", Background(known=known))
    scores = quick(trained_on="labelled", seed=4).score_targets(view, [2, 0])
    assert scores.shape == (2, 60)
    for row, one in zip(scores, (known[1], known[0]), strict=True):
        (sequences,) = sequences_of(View(evidence, "server"), [(one.target, one.columns)])
        learnt = learn(sequences, one.members, 3, 4)
        (every,) = sequences_of(View(evidence, "server"), [(one.target, np.arange(60))])
        np.testing.assert_array_equal(row, learnt.log_odds(every))
        assert view.of(one.target).counters["sequences_learnt"] == len(one.columns)


def test_what_it_says_of_itself() -> None:
    assert SeqMIA().heading == "SeqMIA"
    assert SeqMIA(trained_on="labelled").heading == "SeqMIA, trained on labelled candidates"
    assert (SeqMIA().shadows_wanted, SeqMIA(shadows=4).shadows_wanted) == (1, 4)
    assert SeqMIA(trained_on="labelled").shadows_wanted == 0
    assert SeqMIA(trained_on="labelled").truth_wanted
    assert not SeqMIA().truth_wanted


def test_what_is_missing_is_named() -> None:
    arrays: dict[str, Any] = {signal: np.ones((2, 3, 4)) for signal in READ}
    with pytest.raises(InputError, match="shadows: got 0 shadow federations; expected 1 or more, which a run"):
        score("seqmia", arrays)
    with pytest.raises(InputError, match="known: got no candidates of client 0 whose truth is known"):
        score("seqmia", arrays, trained_on="labelled")
    with pytest.raises(InputError, match=r"recorded the rounds \(1, 2, 3, 4\); expected .* \(1, 2\)"):
        quick().score(View(ArrayEvidence(arrays), "server", Background((shadow_of(9, 0),))), 0)
    evidence, shadow = evidence_of(10), shadow_of(9, 0)
    for known, message in (
        ((), "got 0 members and 0 non-members"),
        ((Known(0, np.arange(3), np.zeros(3, dtype=np.bool_)),), "got 0 members and 3 non-members to learn from"),
    ):
        with pytest.raises(InputError, match=message):
            quick().score(View(evidence, "server", Background((Shadow(shadow.evidence, shadow.asked, known),))), 0)


# --- null and power


def outcome(gain: float, half: int, vantage: Vantage, **fields: Any) -> tuple[float, float]:
    """AUC, and the members found at 0.1 % false positives."""
    members = np.random.default_rng(9).permutation(2 * half) < half
    evidence = evidence_of(2 * half, members, seed=7, gain=gain)
    background = Background((shadow_of(1000, 3, gain=0.3),))
    attack = SeqMIA(vantage=vantage, epochs=25, sequences=1000, **fields)  # type: ignore[arg-type]
    scores = attack.score(View(evidence, vantage, background), 0)
    curve = roc_curve(scores[members], scores[~members])
    found = max(tpr for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True) if fpr <= 0.001)
    return float(roc_auc_score(members, scores)), found


@pytest.mark.parametrize("vantage", ["server", "client"])
def test_null_a_trained_network_finds_no_member_where_nobody_trained(vantage: Vantage) -> None:
    auc, found = outcome(0.0, 4000, vantage)
    assert abs(auc - 0.5) < 0.02
    assert found < 0.004


@pytest.mark.parametrize("vantage", ["server", "client"])
def test_members_are_found_by_what_shadow_members_look_like(vantage: Vantage) -> None:
    auc, _ = outcome(0.3, 1000, vantage)
    assert auc > 0.9


def test_null_on_half_of_the_candidates_whose_truth_says_nothing_of_the_rest() -> None:
    members = np.random.default_rng(2).permutation(8000) < 4000
    known = np.random.default_rng(3).permutation(8000)[:2000]
    view = View(evidence_of(8000), "server", Background(known=(Known(0, known, members[known]),)))
    scores = SeqMIA(trained_on="labelled", epochs=10).score(view, 0)
    rest = np.setdiff1d(np.arange(8000), known)
    assert abs(float(roc_auc_score(members[rest], scores[rest])) - 0.5) < 0.02
