import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedsiege.attacks.membership.label_only import LabelOnly
from fedsiege.errors import InputError
from fedsiege.scoring import score


def test_by_hand() -> None:
    # Divided by their lengths: the target's (.6, .8), the others' (.8, .6), (1, 0), (.6, -.8), in both rounds.
    head = np.array([[3.0, 4.0], [8.0, 6.0], [0.5, 0.0], [1.2, -1.6]])
    first = (0.6 - 0.8) / np.std([0.8, 1.0, 0.6])
    second = (0.8 - (-0.2 / 3)) / np.std([0.6, 0.0, -0.8])
    scores = score("label_only", {"head": np.stack([head, head]), "labels": [1, 0, 1]})
    np.testing.assert_allclose(scores, [second, first, second], rtol=1e-6)


def test_mean_over_rounds_and_constant_in_a_class() -> None:
    rng = np.random.default_rng(0)
    head, labels = rng.normal(size=(4, 6, 3)), rng.integers(0, 3, size=50)
    scores = score("label_only", {"head": head, "labels": labels}, target=2)
    assert len(np.unique(scores)) == 3
    for c in range(3):
        assert len(np.unique(scores[labels == c])) == 1
    pairs = [score("label_only", {"head": head[ts], "labels": labels}, target=2) for ts in ([0, 1], [2, 3])]
    np.testing.assert_allclose(scores, np.mean(pairs, axis=0), rtol=1e-12)


def test_points_at_the_classes_that_the_target_holds_more_of() -> None:
    # One full-batch step of softmax regression from zero moves class c's bias by lr (n_c / n - 1 / C).
    rng = np.random.default_rng(1)
    classes, shares = 10, rng.dirichlet(np.full(10, 0.5), size=8)
    head = np.tile(0.1 * (shares - 1 / classes), (2, 1, 1))
    members = rng.choice(classes, size=2000, p=shares[0])
    nonmembers = rng.integers(0, classes, size=2000)
    scores = score("label_only", {"head": head, "labels": np.concatenate([members, nonmembers])})
    assert roc_auc_score(np.arange(4000) < 2000, scores) > 0.7


def test_the_length_of_an_update_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    head, labels = rng.normal(size=(2, 5, 4)), np.arange(4)
    longer = head * rng.uniform(0.01, 100, size=(2, 5, 1))
    np.testing.assert_allclose(
        score("label_only", {"head": longer, "labels": labels}),
        score("label_only", {"head": head, "labels": labels}),
        rtol=1e-9,
    )


def test_an_update_of_zero_gives_no_nan() -> None:
    head = np.zeros((2, 4, 3))
    assert score("label_only", {"head": head, "labels": [0, 2]}).tolist() == [0.0, 0.0]
    head[:, 1:] = np.random.default_rng(3).normal(size=(2, 3, 3))
    assert np.isfinite(score("label_only", {"head": head, "labels": [0, 2]})).all()


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_beyond_the_last_layer(labels: list[int]) -> None:
    with pytest.raises(InputError, match=rf"labels go from {min(labels)} to {max(labels)}; expected 0\.\.2"):
        score(LabelOnly(), {"head": np.ones((2, 4, 3)), "labels": labels})
