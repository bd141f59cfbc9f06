"""Runs whose attacks are told of a coalition: which evidence they get, and what is refused before a round."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import TINY

from fedsiege.attacks.coalitions import detect
from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.experiment import run
from fedsiege.experiment.config import load
from fedsiege.experiment.prepare import plan_attacks, prepare
from fedsiege.experiment.shadows import shadow_of
from fedsiege.experiment.sharing import share, training
from fedsiege.experiment.train import products_of, recorder_of
from fedsiege.registry import build
from fedsiege.trace import Trace
from fedsiege.view import View, apart

NOISE: dict[str, Any] = {
    "name": "cofedmid",
    "members": [1, 3],
    "assignment": "none",
    "compensation": "none",
    "sigma": 0.2,
    "tail": 0.4,
}
ATTACKS: list[dict[str, Any]] = [
    {"name": "loss_series"},
    {"name": "loss_series", "updates": "denoised"},
    {"name": "fedmia_i", "updates": "coalition"},
    {"name": "fedmia_ii", "updates": "insider", "coordinates": "front"},
    {"name": "avg_cosine", "updates": "insider"},
]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("told") / "noisy"
    run({**TINY, "coalition": NOISE, "attacks": ATTACKS}, place, progress=False)
    return place


def test_each_countermeasure_leaves_a_trace_beside_the_runs(noisy: Path) -> None:
    trace = Trace(noisy / "trace")
    assert sorted(path.name for path in (noisy / "trace").iterdir() if path.is_dir()) == [
        "coalition",
        "denoised",
        "insider",
    ]
    for name in ("coalition", "denoised", "insider"):
        other = trace.variant(name)
        assert other.rounds == trace.rounds == (2, 4, 6)
        assert other.ids.tolist() == trace.ids.tolist()
        assert other.tail == trace.tail > 0
        for client in (0, 2, 4):
            if name != "denoised":
                np.testing.assert_array_equal(other.loss(1)[client], trace.loss(1)[client])
            assert not np.array_equal(other.loss(1)[1], trace.loss(1)[1])
    insider = trace.variant("insider").cosine(1)
    np.testing.assert_array_equal(insider[[0, 2, 4]], trace.cosine(1)[[0, 2, 4]])
    assert not np.array_equal(insider[1], trace.cosine(1)[1])
    as_one = trace.variant("coalition")
    np.testing.assert_array_equal(as_one.loss(0)[1], as_one.loss(0)[3])
    assert not np.array_equal(trace.loss(0)[1], trace.loss(0)[3])


def test_products_with_gradients_are_recorded_where_an_attack_reads_them(noisy: Path) -> None:
    trace = Trace(noisy / "trace")
    assert trace.cosine(0).shape == trace.variant("insider").cosine(0).shape
    for name in ("denoised", "coalition"):  # read for their losses alone
        with pytest.raises(InputError, match="the trace has no gradient_norm2"):
            trace.variant(name).cosine(0)


def test_cells_whose_attacks_read_other_evidence_of_an_upload_do_not_share_training() -> None:
    """Both look at de-noised uploads; one at their losses alone, so that products with gradients are not there."""
    losses, cosines = (
        load({**TINY, "coalition": NOISE, "attacks": ["fedmia_ii", {"name": name, "updates": "denoised"}]})
        for name in ("loss_series", "avg_cosine")
    )
    assert training(losses) != training(cosines)
    assert training(losses) == training(losses.model_copy(update={"title": "another"}))


def test_a_cell_that_shares_training_gets_what_was_made_of_the_uploads_too(noisy: Path, tmp_path: Path) -> None:
    experiment = load({**TINY, "coalition": NOISE, "attacks": ATTACKS[1:3]})
    share(noisy, tmp_path / "other", experiment)
    files = sorted(path.relative_to(noisy) for path in (noisy / "trace").rglob("*.safetensors"))
    assert len(files) == 4 * 3
    for file in files:
        assert (tmp_path / "other" / file).read_bytes() == (noisy / file).read_bytes()
    run({**TINY, "coalition": NOISE, "attacks": ATTACKS[1:3]}, tmp_path / "other", resume=True, progress=False)
    own = pd.read_parquet(tmp_path / "other" / "scores.parquet")
    whole = pd.read_parquet(noisy / "scores.parquet")
    kept = whole[whole["attack"].isin(own["attack"].unique())]
    assert len(own) > 0
    np.testing.assert_array_equal(own["score"].to_numpy(), kept["score"].to_numpy())


def test_attacks_are_scored_on_the_evidence_that_they_ask_for(noisy: Path) -> None:
    trace, scores = Trace(noisy / "trace"), pd.read_parquet(noisy / "scores.parquet")
    place = {identity: column for column, identity in enumerate(trace.ids.tolist())}
    seen = 0
    for spec in ATTACKS:
        attack: MembershipAttack = build("membership", spec, "test")
        told = trace.variant(spec.get("updates", "sent"))
        coalitions = [{1, 3}] if spec.get("updates") == "coalition" else []
        for target in range(5):
            ((evidence, _),) = apart(told, coalitions, [target])
            naive = attack.score(View(evidence, "server"), target)
            rows = scores[(scores["attack"].str.startswith(spec["name"])) & (scores["target"] == target)]
            for word in ("denoised", "coalition", "insider", "front"):
                rows = rows[rows["attack"].str.contains(word) == (word in map(str, spec.values()))]
            columns = [place[identity] for identity in rows["candidate"]]
            np.testing.assert_array_equal(rows["score"], naive[columns])
            seen += len(rows)
    assert seen == len(scores) > 0


def test_an_insider_sees_what_there_is_without_noise(noisy: Path, tmp_path: Path) -> None:
    """The noise cancels in the aggregate, and so the run without it has the same models, up to rounding."""
    run({**TINY, "coalition": {**NOISE, "perturbation": "none"}, "attacks": ["loss_series"]}, tmp_path / "plain")
    plain, trace = Trace(tmp_path / "plain" / "trace"), Trace(noisy / "trace")
    assert plain.tail == 0
    for t in range(3):
        np.testing.assert_allclose(trace.variant("insider").loss(t), plain.loss(t), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(trace.variant("insider").cosine(t), plain.cosine(t), atol=2e-3)
        assert np.abs(trace.cosine(t)[[1, 3]] - plain.cosine(t)[[1, 3]]).max() > 0.05
    (found,) = detect(trace).coalitions
    assert found.members == (1, 3)


def test_the_same_bytes_again(noisy: Path, tmp_path: Path) -> None:
    config = {**TINY, "coalition": NOISE, "attacks": ATTACKS}
    run(config, tmp_path / "again", progress=False)
    for path in sorted((noisy / "trace").rglob("*")):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(noisy)).read_bytes() == path.read_bytes()
    assert (tmp_path / "again" / "scores.parquet").read_bytes() == (noisy / "scores.parquet").read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"coalition": []},
            InputError,
            "loss_series: updates: insider is told of a coalition, and the run has none",
        ),
        (
            {"coalition": [], "attacks": [{"name": "fedmia_ii", "coordinates": "front"}]},
            InputError,
            "coordinates: front needs to know .*; set trace.tail",
        ),
        (
            {"coalition": {**NOISE, "mode": "alone"}},
            InputError,
            "loss_series: updates: insider is told what one member .* every member acts alone",
        ),
        ({"secure_aggregation": True}, ThreatModelError, "loss_series: updates: insider reads single clients'"),
        (
            {
                "coalition": {**NOISE, "members": [0, 1, 3, 4]},
                "attacks": [{"name": "fedmia_i", "updates": "coalition"}],
            },
            InputError,
            "fedmia_i: with updates: coalition the server sees 2 clients",
        ),
        ({"trace": {"tail": 1e-6}}, InputError, "trace.tail: got 1e-06, which is none of the model's"),
        ({"trace": {"tail": 1.5}}, InputError, "trace.tail: got 1.5"),
    ],
)
def test_what_a_run_cannot_serve_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = {**TINY, "coalition": NOISE, "attacks": [{"name": "loss_series", "updates": "insider"}], **changes}
    with pytest.raises(error, match=message):
        run(config, tmp_path / "refused", progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_one_coalition_that_shares_its_plan_is_enough_for_an_insider() -> None:
    together = [{**NOISE, "mode": "alone"}, {**NOISE, "members": [0, 4]}]
    config = {**TINY, "coalition": together, "attacks": [{"name": "loss_series", "updates": "insider"}]}
    assert len(plan_attacks(load(config))) == 1


def test_a_neutral_coalition_is_one_client_where_it_shares_none() -> None:
    off = {"name": "cofedmid", "assignment": "none", "compensation": "none", "perturbation": "none"}
    attacks = [{"name": "loss_series", "updates": "coalition"}]
    for members, kept in (([0, 1], [{1, 3}]), ([0, 2], [{1, 3}, {0, 2}])):
        for both in ([{**off, "members": members}, NOISE], [NOISE, {**off, "members": members}]):
            (one,) = plan_attacks(load({**TINY, "coalition": both, "attacks": attacks}))
            assert sorted(map(sorted, one.coalitions)) == sorted(map(sorted, kept))
    silent = [{**NOISE, "mode": "alone"}, {**off, "members": [1, 2]}]
    with pytest.raises(InputError, match="every member acts alone"):
        plan_attacks(
            load({**TINY, "coalition": silent, "attacks": [{"name": "loss_series", "updates": "insider"}]})
        )


def test_the_result_says_what_was_made_of_the_uploads(noisy: Path) -> None:
    result = json.loads((noisy / "result.json").read_text(encoding="utf-8"))
    told = {one["label"]: one for one in result["components"] if one["kind"] == "countermeasure"}
    assert list(told) == ["updates: denoised", "updates: coalition", "updates: insider"]
    for name, changed in (("denoised", 15), ("coalition", 6), ("insider", 6)):
        one = told[f"updates: {name}"]
        assert one["acted"]
        assert (one["counters"]["uploads"], one["counters"]["changed"]) == (15, changed), "5 clients, 3 rounds"
        assert one["counters"]["taken_off_rms"] > 0
    assert not any("changed none" in text or "takes one number" in text for text in result["warnings"])
    sees = " ".join(result["threat_model"]["sees"])
    assert "For fedmia_i(updates=coalition) alone: which clients are in a coalition together." in sees
    assert "every member's noise in every round" in sees


def test_a_coalition_as_one_is_asked_whether_an_example_is_its_own(noisy: Path) -> None:
    result = json.loads((noisy / "result.json").read_text(encoding="utf-8"))
    rows = [one for one in result["attacks"] if one["target"] == "coalition"]
    assert {one["attack"] for one in rows} == {"fedmia_i(updates=coalition)"}
    assert [one["against"] for one in rows] == ["all", "ifl", "ofl"]
    scores = pd.read_parquet(noisy / "scores.parquet")
    own = scores[scores["attack"].str.contains("coalition") & scores["target"].isin([1, 3])]
    ids = prepare(load({**TINY, "coalition": NOISE, "attacks": ATTACKS}))
    theirs = {identity for member in (1, 3) for identity in ids.data.train.ids[ids.shards[member]].tolist()}
    first = own.drop_duplicates("candidate")
    assert (own.groupby("candidate")["score"].nunique() == 1).all(), "the members cannot be told apart"
    inside = first["candidate"].isin(theirs)
    assert first.loc[inside, "group"].isin(["member", "ifl"]).all()
    assert (rows[0]["n_members"], rows[0]["n_nonmembers"]) == (int(inside.sum()), int((~inside).sum()))
    ranks = first["score"].rank()
    wins = ranks[inside].sum() - inside.sum() * (inside.sum() + 1) / 2
    assert rows[0]["auc"]["value"] == pytest.approx(wins / inside.sum() / (~inside).sum())
    assert rows[1]["n_nonmembers"] + rows[2]["n_nonmembers"] == rows[0]["n_nonmembers"]
    assert rows[2]["n_nonmembers"] == (first["group"] == "ofl").sum()


def test_a_countermeasure_that_changes_nothing_is_said(tmp_path: Path) -> None:
    quiet = {**NOISE, "perturbation": "none", "assignment": "random", "m_max": 2, "m_min": 2}
    attacks = [{"name": "loss_series", "updates": name} for name in ("denoised", "insider")]
    run({**TINY, "coalition": quiet, "attacks": attacks}, tmp_path / "quiet", progress=False)
    result = json.loads((tmp_path / "quiet" / "result.json").read_text(encoding="utf-8"))
    for name in ("denoised", "insider"):
        (one,) = (part for part in result["components"] if part["label"] == f"updates: {name}")
        assert (one["acted"], one["counters"]) == (False, {"uploads": 15, "changed": 0})
        (said,) = (text for text in result["warnings"] if text.startswith(f"updates: {name} changed none of 15"))
        assert f"loss_series(updates={name})" in said


def test_tails_of_unlike_length_are_warned_of(tmp_path: Path) -> None:
    both = [NOISE, {**NOISE, "members": [0, 4], "tail": 0.1}]
    for name, updates, warned in (("denoised", "denoised", 1), ("insider", "insider", 0)):
        attacks = [{"name": "loss_series", "updates": updates}]
        run({**TINY, "rounds": 4, "coalition": both, "attacks": attacks}, tmp_path / name, progress=False)
        warnings = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))["warnings"]
        said = [text for text in warnings if "takes one number off the last" in text]
        assert len(said) == warned
        assert all("tail=0.1" in text for text in said)


def test_the_config_may_say_where_noise_is_looked_for(tmp_path: Path) -> None:
    attacks = [{"name": "avg_cosine", "coordinates": "front"}, {"name": "loss_series", "updates": "denoised"}]
    run({**TINY, "attacks": attacks, "trace": {"tail": 0.3}}, tmp_path / "run", progress=False)
    trace = Trace(tmp_path / "run" / "trace")
    assert trace.tail > 0
    assert trace.variant("denoised").tail == trace.tail
    assert detect(trace).coalitions == ()


def test_members_are_served_where_their_coalition_leaves_enough_others() -> None:
    config = {**TINY, "coalition": NOISE, "attacks": [{"name": "fedmia_i", "updates": "coalition"}, "fedmia_i"]}
    told, published = plan_attacks(load(config))
    assert told.coalitions == (frozenset({1, 3}),)
    assert published.coalitions == ()
    who = {number: np.array([1, 1, 0, 1, 0], dtype=bool) for number in (2, 4)}
    assert [published.serves(target, who) for target in (0, 1, 3)] == [True, True, True]
    assert [told.serves(target, who) for target in (0, 1, 3)] == [False, False, False]
    four = {number: np.array([1, 1, 0, 1, 1], dtype=bool) for number in (2, 4)}
    assert [told.serves(target, four) for target in (0, 1, 3)] == [True, True, True]


def test_of_a_shadow_federation_no_more_products_are_recorded_than_are_read() -> None:
    learns = {**TINY, "attacks": ["avg_cosine", {"name": "seqmia", "epochs": 1}]}
    real = prepare(load({**learns, "examples_per_client": 15, "candidates": {"ifl": 20, "ofl": 10}}))
    assert real.auxiliary is not None
    shadow = shadow_of(real, real.auxiliary, 0)
    assert products_of(real) == {"sent"}
    assert products_of(shadow) == frozenset(), "SeqMIA reads what the models say, and no gradient"
    assert products_of(replace(shadow, attacks=real.attacks)) == {"sent"}
    assert recorder_of(shadow, Path("nowhere")).products == frozenset()
