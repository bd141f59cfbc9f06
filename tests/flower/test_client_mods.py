"""Mods around somebody's ClientApp, through Flower's own messages: defences, a coalition's part, red-teaming."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")

import fedsiege.flower  # noqa: F401, I001 - before Flower: it reads switches when it is imported
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsiege import promises
from fedsiege.defences.client.base import Turn, posted
from fedsiege.defences.coalition.base import Circle
from fedsiege.defences.coalition.noise import Noise
from fedsiege.errors import InputError
from fedsiege.flower.circle import circle_in, of_run, write_circle
from fedsiege.flower import client_mods, red_team
from fedsiege.flower.client_mods import GuardedClientApp, RefusedError, examples_of_round
from fedsiege.flower.mods import Delta, Outline
from fedsiege.flower.signature import KEY, Signature, unsign
from fedsiege.records import Layout
from fedsiege.registry import build, names
from fedsiege.streams import entropy, stream
from fedsiege.training import PLAIN
from fedsiege.update_log import UpdateLog

pytestmark = pytest.mark.flower

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flower_app"

State = dict[str, torch.Tensor]


def state(seed: int = 0) -> State:
    """A model's state: weights, running statistics between them, a counter, and a layer in half precision."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(30, 50, generator=draw),
        "bn.running_mean": torch.randn(30, generator=draw),
        "bn.num_batches_tracked": torch.tensor(7 + seed),
        "half.weight": torch.randn(40, generator=draw).half(),
        "double.weight": torch.randn(20, generator=draw).double(),
        "fc.weight": torch.randn(10, 30, generator=draw),
        "fc.bias": torch.randn(10, generator=draw),
    }


def step(message: Message, context: Context) -> State:
    """What the app's training makes of the model: another small step in each round of this node."""
    start = message.content.array_records["arrays"].to_torch_state_dict()
    rng = torch.Generator().manual_seed(17)
    return {
        name: value + 1 if value.dtype == torch.int64 else value + (1e-3 * noise(value, rng)).to(value.dtype)
        for name, value in start.items()
    }


def noise(value: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(value.shape, generator=rng)


def app_of(trains: Callable[[Message, Context], State] = step) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "train-loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord(trains(message, context)), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10})}), reply_to=message)

    return app


APP = app_of()
"""At the top of this file, so that a name leads to it, as to anybody's app."""


def asked(number: int | None = 1, model: State | None = None, kind: str = "train") -> Message:
    content = RecordDict({"arrays": ArrayRecord(state() if model is None else model)})
    if number is not None:
        content["config"] = ConfigRecord({"server-round": number, "lr": 0.1})
    return Message(content, dst_node_id=3, message_type=kind)


def node(run: dict[str, Any] | None = None, **config: Any) -> Context:
    known = {name.replace("_", "-"): value for name, value in config.items()}
    told = {f"fedsiege-{name}" if name != "partition-id" else name: value for name, value in known.items()}
    return Context(
        run_id=1, node_id=3, node_config={"partition-id": 0, **told}, state=RecordDict(), run_config=run or {}
    )


def answer(context: Context, number: int | None = 1, app: ClientApp = APP, model: State | None = None) -> Message:
    return GuardedClientApp(app)(asked(number, model), context)


def arrays(reply: Message) -> dict[str, Array]:
    return dict(reply.content.array_records["arrays"])


def update(reply: Message, model: State | None = None) -> NDArray[np.float64]:
    """The update of a reply, in the order of the record, in float64."""
    start = state() if model is None else model
    sent = reply.content.array_records["arrays"].to_torch_state_dict()
    floats = [name for name in start if start[name].is_floating_point()]
    return np.concatenate([(sent[name].double() - start[name].double()).reshape(-1).numpy() for name in floats])


def plain(number: int | None = 1) -> Message:
    return APP(asked(number), node())


@pytest.fixture(autouse=True)
def _as_in_a_task_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("task_id", "run_id", "node_id"):  # Flower sets them where it runs an app
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity._{name}", 1)
    for name in ("DEFENCES", "SEED", "POISONER", "COALITION"):
        monkeypatch.delenv(f"FEDSIEGE_{name}", raising=False)


# The update, and the way back.


def test_an_update_lies_trained_tensors_first_and_comes_back_as_it_was() -> None:
    message, reply = asked(), plain()
    delta = Delta.of(message, reply)
    assert delta.layout.names == (
        "conv.weight",
        "half.weight",
        "double.weight",
        "fc.weight",
        "fc.bias",
        "bn.running_mean",
    )
    assert delta.layout.kinds[-1] == "buffer"
    assert delta.layout.trained == delta.layout.size - 30
    start, sent = state(), step(message, node())
    for name, place in delta.layout.slices():
        wanted = (sent[name].double() - start[name].double()).float().reshape(-1)
        torch.testing.assert_close(delta.update[place], wanted, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(delta.start[place], start[name].float().reshape(-1), rtol=0, atol=0)
    before = {name: array.data for name, array in arrays(reply).items()}
    delta.write(delta.update.clone())
    assert {name: array.data for name, array in arrays(reply).items()} == before


def test_a_changed_update_is_written_back_in_each_array_s_own_type() -> None:
    reply = plain()
    delta = Delta.of(asked(), reply)
    changed = delta.update.clone()
    places = dict(delta.layout.slices())
    for name in ("half.weight", "double.weight", "fc.bias"):
        changed[places[name]] = 0.25
    before = {name: array.data for name, array in arrays(reply).items()}
    delta.write(changed)
    sent, start = reply.content.array_records["arrays"].to_torch_state_dict(), state()
    for name in ("half.weight", "double.weight", "fc.bias"):
        assert sent[name].dtype == start[name].dtype
        exact = start[name].double() + 0.25
        tolerance = 2e-3 if name == "half.weight" else 1e-7 if name == "fc.bias" else 1e-15
        torch.testing.assert_close(sent[name].double(), exact, rtol=tolerance, atol=0)
    untouched = set(before) - {"half.weight", "double.weight", "fc.bias"}
    assert all(arrays(reply)[name].data == before[name] for name in untouched)


def test_several_records_are_one_update_and_a_lone_one_may_have_another_name() -> None:
    def message(name: str, scale: float) -> RecordDict:
        records = {one: ArrayRecord([scale * np.ones(3, np.float32)]) for one in name.split()}
        return RecordDict(records)  # type: ignore[arg-type]

    ask = Message(message("g d", 1), dst_node_id=1, message_type="train")
    delta = Delta.of(ask, Message(message("d g", 3), reply_to=ask))
    assert delta.layout.names == ("d/0", "g/0")
    assert delta.update.tolist() == [2.0] * 6
    lone = Message(message("fitins.parameters", 1), dst_node_id=1, message_type="train")
    assert Delta.of(lone, Message(message("fitres.parameters", 2), reply_to=lone)).update.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "no arrays"),
        (
            {"other": ArrayRecord([np.ones(3, np.float32)]), "arrays": ArrayRecord([np.ones(3, np.float32)])},
            "'other'",
        ),
        ({"arrays": ArrayRecord([np.ones(4, np.float32)])}, "of shape (4,) has no like"),
        ({"arrays": ArrayRecord([np.ones(3, np.float32)] * 2)}, "arrays/1 of shape (3,) has no like"),
        ({"arrays": ArrayRecord([np.ones(3, np.int64)])}, "no arrays of floats"),
        ({"arrays": ArrayRecord({"0": Array("float32", (3,), "numpy.ndarray", b"nonsense")})}, "cannot be read"),
    ],
)
def test_arrays_that_no_mod_could_defend_stop_the_reply(content: dict[str, Any], why: str) -> None:
    ask = Message(
        RecordDict({"arrays": ArrayRecord([np.zeros(3, np.float32)])}), dst_node_id=1, message_type="train"
    )
    with pytest.raises(InputError) as error:
        Delta.of(ask, Message(RecordDict(content), reply_to=ask))
    assert why in str(error.value)


# Defences.


def test_without_settings_the_reply_is_the_app_s_and_signed() -> None:
    reply = answer(node())
    assert unsign(reply) == Signature(0, ())
    assert {name: array.data for name, array in arrays(reply).items()} == {
        name: array.data for name, array in arrays(plain()).items()
    }
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 10, "train-loss": 0.5}


NEUTRAL: list[dict[str, Any]] = [
    {"name": "perturb", "sigma": 0.0},
    {"name": "sparsify", "share": 0.0},
    {"name": "quantize", "bits": None},
]


def test_neutral_defences_leave_every_byte_and_declare_nothing() -> None:
    reply = answer(node(defences=json.dumps(NEUTRAL)))
    assert unsign(reply) == Signature(0, ())
    assert [array.data for array in arrays(reply).values()] == [array.data for array in arrays(plain()).values()]


def test_replies_to_other_messages_are_left_alone() -> None:
    context = node(defences="[{name: nonsense}]")
    reply = GuardedClientApp(APP)(asked(kind="evaluate"), context)
    assert KEY not in reply.content
    assert not len(context.state)


UPDATES = [
    {"name": "perturb", "sigma": 0.01, "clip": 0.1},
    {"name": "sparsify", "share": 0.9, "spare": 100},
    {"name": "quantize", "bits": 4},
]


@pytest.mark.parametrize("spec", UPDATES, ids=lambda spec: str(spec["name"]))
def test_a_defence_makes_of_the_update_what_it_makes_in_the_package(spec: dict[str, Any]) -> None:
    """The same turn, worked out here: seed, name, place, the node's count and number name the stream."""
    context = node(defences=json.dumps([spec]), seed="11", partition_id=4)
    reply = answer(context, number=6)
    bare = Delta.of(asked(6), plain(6))
    (one,) = posted([build("client_defence", spec, "test")], 5)
    turn = Turn(Outline(bare.layout), 1, 4, 0, None, stream(0))
    wanted = one.defence.on_update(bare.update, one.turn(11, turn))
    expected = plain(6)
    Delta.of(asked(6), expected).write(wanted)
    assert [array.data for array in arrays(reply).values()] == [array.data for array in arrays(expected).values()]
    assert [array.data for array in arrays(reply).values()] != [array.data for array in arrays(plain(6)).values()]
    assert unsign(reply) == Signature(4, (spec,))
    assert arrays(reply)["bn.num_batches_tracked"].data == arrays(plain(6))["bn.num_batches_tracked"].data


def test_dp_fedavg_clips_and_noises_a_model_without_statistics_and_refuses_one_with() -> None:
    model = {name: value for name, value in state().items() if "bn" not in name}
    spec = "[{name: dp_fedavg, clip: 0.01, noise_multiplier: 0.0}]"
    reply = answer(node(defences=spec), model=model)
    assert np.linalg.norm(update(reply, model)) == pytest.approx(0.01, rel=2e-2)  # half precision rounds
    with pytest.raises(RefusedError):
        answer(node(defences=spec))


def test_noise_of_a_round_needs_to_know_its_clients(caplog: pytest.LogCaptureFixture) -> None:
    model = {"w": torch.zeros(4000)}
    spec = "[{name: dp_fedavg, clip: 1.0, noise_multiplier: 1.0, noise: distributed}]"
    with pytest.raises(RefusedError):
        answer(node(defences=spec), model=model)
    assert "fedsiege-cohort: missing" in caplog.text
    with pytest.raises(RefusedError):  # else the server would say how little noise there is
        answer(node({"fedsiege-cohort": 10**9}, defences=spec), model=model)
    for context in (
        node(defences=spec, cohort=16),
        node({"fedsiege-defences": spec, "fedsiege-cohort": 16}),
    ):
        reply = answer(context, model=model)
        assert update(reply, model).std() == pytest.approx(0.25, rel=0.1)
        signed = unsign(reply)
        assert signed is not None
        assert signed.declared[0]["cohort"] == 16, "nobody could hold the noise against what was promised"
    for without in ("[{name: dp_fedavg, noise: distributed, noise_multiplier: 0.0}]", "[{name: dp_fedavg}]"):
        signed = unsign(answer(node(defences=without, cohort=16), model=model))
        assert signed is not None
        assert "cohort" not in signed.declared[0]


def test_several_defences_act_in_their_order() -> None:
    two = [{"name": "perturb", "sigma": 0.01}, {"name": "sparsify", "share": 0.9, "spare": 100}]
    there = update(answer(node(defences=json.dumps(two))))
    back = update(answer(node(defences=json.dumps(two[::-1]))))
    assert (there[:1500] == 0).mean() == pytest.approx(0.9, abs=0.01)
    assert (back[:1500] == 0).mean() < 0.01


def test_a_tensor_that_no_defence_changed_keeps_its_bytes_where_a_sum_would_lose_them() -> None:
    model = {"w": torch.zeros(2000), "b": torch.full((5,), 1e8)}
    sent = {"w": torch.arange(2000.0), "b": torch.full((5,), 0.1234567)}
    reply = answer(node(defences="[{name: sparsify}]"), app=app_of(lambda *_: sent), model=model)
    assert arrays(reply)["b"].data == Array(sent["b"].numpy()).data
    assert np.count_nonzero(update(reply, model)[:2000]) < 250


def test_a_defence_of_other_clients_is_not_used() -> None:
    spec = "[{name: perturb, sigma: 0.1, clients: [2, 5]}]"
    away, here = answer(node(defences=spec)), answer(node(defences=spec, partition_id=2))
    assert unsign(away) == Signature(0, ())
    assert [array.data for array in arrays(away).values()] == [array.data for array in arrays(plain()).values()]
    assert unsign(here) == Signature(2, ({"name": "perturb", "sigma": 0.1, "clip": None},))


def test_noise_is_new_in_every_answer_even_to_the_same_round() -> None:
    context, zero = node(defences="[{name: perturb, sigma: 0.1}]"), update(plain())
    noises = [update(answer(context, number=1)) - zero for _ in range(3)]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(noises[i][:1500], noises[j][:1500])[0, 1]) < 0.15


def test_noise_repeats_with_the_node_s_seed_and_differs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = "[{name: perturb, sigma: 0.1}]"

    def sent(**config: Any) -> NDArray[np.float64]:
        return update(answer(node(defences=spec, **config)))

    np.testing.assert_array_equal(sent(seed="5"), sent(seed="5"))
    assert not np.array_equal(sent(seed="5"), sent(seed="6"))
    assert not np.array_equal(sent(seed="5"), sent(seed="5", partition_id=1))
    assert not np.array_equal(sent(), sent())
    monkeypatch.setenv("FEDSIEGE_SEED", "5")
    np.testing.assert_array_equal(sent(), sent(seed="5"))


def test_a_drawn_seed_stays_with_the_node() -> None:
    context = node(defences="[{name: perturb, sigma: 0.1}]")
    answer(context)
    first = dict(context.state.config_records[client_mods.KEPT])
    answer(context)
    second = dict(context.state.config_records[client_mods.KEPT])
    assert first["seed"] == second["seed"]
    assert (first["trained"], second["trained"]) == (1, 2)


def test_the_app_s_state_is_its_own() -> None:
    seen: list[list[str]] = []

    def trains(message: Message, context: Context) -> State:
        seen.append(list(context.state))
        context.state["mine"] = ConfigRecord({"n": len(seen)})
        return step(message, context)

    context, app = node(defences="[{name: perturb}]"), app_of(trains)
    for number in (1, 2):
        answer(context, number, app)
    assert seen == [[], ["mine"]]
    assert dict(context.state.config_records["mine"]) == {"n": 2}


def test_an_answer_that_failed_counts_and_noise_is_not_drawn_again() -> None:
    fails = [True]

    def trains(message: Message, context: Context) -> State:
        if fails.pop():
            raise ValueError("out of memory")
        return step(message, context)

    context = node(defences="[{name: perturb}]")
    with pytest.raises(ValueError, match="out of memory"):
        answer(context, app=app_of(trains))
    answer(context)
    assert context.state.config_records[client_mods.KEPT]["trained"] == 2


def test_an_error_of_the_app_passes_as_it_is() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(Error(code=7, reason="no data"), reply_to=message)

    reply = GuardedClientApp(app)(asked(), node(defences="[{name: perturb}]"))
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (7, "no data")


def test_the_app_s_own_mods_and_lifespan_run_inside() -> None:
    said = list[str]()

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        said.append("mod")
        return call_next(message, context)

    app = ClientApp(mods=[mod])

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        said.append("begins")
        yield
        said.append("ends")

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": ArrayRecord(step(message, context))}), reply_to=message)

    answer(node(), app=app)
    assert said == ["begins", "mod", "ends"]


def test_names_lead_to_the_app_and_it_can_be_sent_to_a_worker() -> None:
    names_so_far = client_mods.around
    for part in __name__.split("."):
        names_so_far = getattr(names_so_far, part)
    assert isinstance(names_so_far.APP, GuardedClientApp)
    assert pickle.loads(pickle.dumps(client_mods.around)) is not None
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray comes with the extra flower")
    again = cloudpickle.loads(cloudpickle.dumps(GuardedClientApp(app_of())))
    assert unsign(again(asked(), node())) == Signature(0, ())


def test_what_a_node_or_its_environment_says_goes_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIEGE_DEFENCES", "[{name: quantize, bits: 3}]")
    run = {"fedsiege-defences": "[{name: quantize, bits: 4}]"}

    def bits(context: Context) -> Any:
        signed = unsign(answer(context))
        assert signed is not None
        return signed.declared[0]["bits"]

    assert bits(node(run, defences="[{name: quantize, bits: 5}]")) == 5
    assert bits(node(run)) == 3
    assert bits(node({"fedsiege-defences": "[]"})) == 3, "the run has switched a site's defence off"
    monkeypatch.delenv("FEDSIEGE_DEFENCES")
    assert bits(node(run)) == 4


def test_every_defence_whose_only_moment_is_the_update_works_and_all_others_are_refused_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, works, refused = {"w": torch.zeros(2000)}, set[str](), set[str]()
    for name in names("client_defence"):
        caplog.clear()
        try:
            answer(node(defences=f"[{{name: {name}}}]"), model=model)
        except RefusedError:
            refused.add(name)
            assert f"fedsiege-defences.0: {name} acts on " in caplog.text
            assert "expected one of dp_fedavg, perturb, quantize, sparsify" in caplog.text
        else:
            works.add(name)
    assert works == {"dp_fedavg", "perturb", "quantize", "sparsify"}
    assert {"mixup", "dp_sgd", "loden", "relaxloss", "sample", "augment", "hamp", "instahide"} <= refused


def test_a_refusal_comes_before_training_and_the_server_is_not_told_why(caplog: pytest.LogCaptureFixture) -> None:
    trained = list[int]()

    def trains(message: Message, context: Context) -> State:
        trained.append(1)
        return step(message, context)

    with pytest.raises(RefusedError) as error:
        answer(node(defences="[{name: mixup}]"), app=app_of(trains))
    assert not trained
    assert "mixup" not in str(error.value)
    assert "mixup acts on the batches" in caplog.text


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"defences": "[{name: perturb"}, "expected YAML or JSON"),
        ({"defences": "[{sigma: 1}]"}, "expected [{name"),
        ({"defences": "[3]"}, "expected [{name"),
        ({"defences": "[{name: pertrub}]"}, "did you mean 'perturb'?"),
        ({"defences": "[{name: perturb, sigma: -1}]"}, "fedsiege-defences.0.sigma: got -1"),
        ({"defences": "[perturb, perturb]"}, "is listed twice"),
        ({"defences": "[{name: sparsify, spare: 100000}]"}, "leaves every tensor of the model alone"),
        ({"cohort": "many"}, "fedsiege-cohort: got 'many'"),
        ({"seed": "minus one"}, "fedsiege-seed: expected a whole number"),
        ({"partition_id": "x"}, "partition-id: got 'x'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    config: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RefusedError):
        answer(node(**config))
    assert why in caplog.text


@pytest.mark.parametrize("name", ["seed", "coalition"])
def test_what_the_server_must_not_know_is_not_taken_from_the_run(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    defences = "[{name: cofedmid, assignment: none, compensation: none}]" if name == "coalition" else ""
    with pytest.raises(RefusedError):
        answer(node({f"fedsiege-{name}": "3", "fedsiege-defences": defences}))
    assert f"fedsiege-{name}: got it from the run-config" in caplog.text


def test_what_a_defence_did_is_logged_on_the_node_and_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reply = answer(node(defences="[{name: perturb, sigma: 0.01}]"), number=9)
    assert "FedSiege: round 9: perturb(sigma=0.01): " in caplog.text
    assert "mean_noise_norm" in caplog.text
    assert set(reply.content) == {"arrays", "metrics", KEY}
    assert "norm" not in str(dict(reply.content.config_records[KEY]))


def test_a_defence_may_keep_what_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting_defence.py").write_text(
        "from typing import ClassVar\n"
        "import torch\n"
        "from fedsiege.defences.client.base import ClientDefence, Clients\n"
        "from fedsiege.registry import register\n\n"
        "@register('counting')\n"
        "class Counting(ClientDefence):\n"
        "    '''Add how often it acted.'''\n"
        "    title: ClassVar[str] = 'Counting'\n"
        "    neutral: ClassVar[None] = None\n"
        "    clients: Clients = 'all'\n"
        "    def on_update(self, update, turn):\n"
        "        n = turn.memory.get('n', torch.zeros(1)) + 1\n"
        "        turn.memory = {'n': n}\n"
        "        return torch.full_like(update, float(n) + 100 * turn.number)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    context, model = node(defences="[{name: 'counting_defence:Counting'}]"), {"w": torch.zeros(5)}
    found = [update(answer(context, number, model=model), model)[0] for number in (1, 4, None)]
    assert found == [101.0, 402.0, 303.0]  # the third message says no round: it is the node's third


def test_an_outline_has_a_layout_and_says_so_when_more_is_asked() -> None:
    task = Outline(Layout(("w",), ((2,),), ("trained",), ("w",)))
    assert task.layout.size == 2
    with pytest.raises(InputError, match="state of the model is needed, and a mod sees finished updates alone"):
        _ = task.state
    with pytest.raises(AttributeError):
        _ = task.__deepcopy__


# A coalition's part.

SECRET = "c0ffee" * 5


def circle_file(folder: Path, **changes: Any) -> str:
    known = {"secret": SECRET, "volumes": {"0": 30, "2": 10}, "rounds": 5, "classes": 10, **changes}
    path = folder / "coalition.json"
    path.write_text(json.dumps({name: value for name, value in known.items() if value is not None}))
    return str(path)


MEMBER = "[{name: cofedmid, assignment: none, compensation: none, sigma: 0.1, tail: 0.2}]"


def test_members_add_noise_that_cancels_in_the_weighted_mean_and_say_nothing_of_it(tmp_path: Path) -> None:
    path, model = circle_file(tmp_path), {"a": torch.zeros(60), "b": torch.zeros(40)}
    context = {client: node(defences=MEMBER, coalition=path, partition_id=client) for client in (0, 2)}
    for number in (1, 2):
        replies = {client: answer(one, number, model=model) for client, one in context.items()}
        bare = update(answer(node(), number, model=model), model)
        added = {client: update(reply, model) - bare for client, reply in replies.items()}
        left = (30 * added[0] + 10 * added[2]) / 40
        assert np.abs(left).max() < 1e-7
        for client, row in added.items():
            assert not row[:80].any()
            wanted = Noise(
                entropy(int(SECRET, 16), "run", 1), number, {0: 30.0, 2: 10.0}, 0.1, "scalar", cancels=True
            )
            (_, values), *_ = wanted.blocks(client, 20)
            np.testing.assert_allclose(row[80:], values, atol=1e-7)
            assert unsign(replies[client]) == Signature(client, ())


def test_a_coalition_s_file_serves_several_runs_with_other_noise_in_each(tmp_path: Path) -> None:
    path, model = circle_file(tmp_path), {"a": torch.zeros(60), "b": torch.zeros(40)}
    bare, added = update(answer(node(), model=model), model), dict[tuple[int, int], NDArray[np.float64]]()
    for run in (1, 2):
        for client in (0, 2):
            context = node(defences=MEMBER, coalition=path, partition_id=client)
            context.run_id = run
            added[run, client] = update(answer(context, model=model), model) - bare
        assert np.abs(30 * added[run, 0] + 10 * added[run, 2]).max() < 4e-6, "members do not agree"
    assert added[1, 0][80:].any()
    assert not np.allclose(added[1, 0], added[2, 0], atol=1e-3)


def test_the_file_of_a_coalition_is_for_this_user_alone_even_where_one_was_there(tmp_path: Path) -> None:
    path = tmp_path / "coalition.json"
    path.write_text("{}" * 1000)
    path.chmod(0o644)
    circle = Circle(secret=int(SECRET, 16), volumes={0: 30.0, 2: 10.0}, classes=10, rounds=5)
    write_circle(path, circle)
    assert path.stat().st_mode & 0o777 == 0o600
    assert circle_in(path, "test") == circle


def test_a_member_answers_each_round_once_and_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = node(defences=MEMBER, coalition=circle_file(tmp_path))
    answer(context, 3)
    for number in (3, 2, 6):
        with pytest.raises(RefusedError):
            answer(context, number)
        assert f"round {number}: a member of a coalition answers each of its 5 rounds once" in caplog.text
    answer(context, 4)


def test_the_class_guided_partition_is_one_line_in_the_app(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = circle_file(tmp_path)
    spec = "[{name: cofedmid, compensation: none, perturbation: none, m_max: 4, m_min: 4}]"
    labels, chosen = np.arange(50) % 10, dict[int, list[int]]()

    def trains(message: Message, context: Context) -> State:
        rows = examples_of_round(labels)
        chosen[int(str(context.node_config["partition-id"]))] = sorted(set(labels[rows].tolist()))
        assert len(rows) == 5 * len(set(labels[rows]))
        return step(message, context)

    for client in (0, 2):
        answer(node(defences=spec, coalition=path, partition_id=client), app=app_of(trains))
    assert [len(one) for one in chosen.values()] == [4, 4]
    made = build("coalition", {"name": "cofedmid", "m_max": 4, "m_min": 4}, "test")
    circle = of_run(circle_in(Path(path), "fedsiege-coalition"), 1)
    plan = made.coordinator(circle).plan(1, [0, 2])
    assert chosen == {client: sorted(plan.classes[client]) for client in (0, 2)}
    with pytest.raises(RefusedError):
        answer(node(defences=spec, coalition=path), app=APP)
    assert "did not ask examples_of_round" in caplog.text


def test_outside_a_coalition_all_examples_are_of_the_round() -> None:
    assert examples_of_round([3, 1, 2]).tolist() == [0, 1, 2]
    seen = list[int]()

    def trains(message: Message, context: Context) -> State:
        seen.append(len(examples_of_round(np.zeros(7))))
        return step(message, context)

    answer(node(), app=app_of(trains))
    assert seen == [7]
    with pytest.raises(InputError, match=r"labels: got shape \(2, 2\)"):
        examples_of_round(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("spec", "changes", "config", "why"),
    [
        ("[{name: cofedmid, assignment: none}]", {}, {}, "cofedmid.compensation: got bandit, which acts on data"),
        (MEMBER, {}, {"partition_id": 1}, "client 1 is no member; there are [0, 2]"),
        (MEMBER, {}, {"coalition": ""}, "fedsiege-coalition: missing"),
        (MEMBER, {}, {"coalition": "/no/such/file"}, "cannot be read (FileNotFoundError)"),
        (MEMBER, {"secret": "xyz-not-hex"}, {}, "cannot be read (ValueError)"),
        (MEMBER, {"secret": "12"}, {}, "anybody can guess it"),
        (MEMBER, {"volumes": {"0": 30}}, {}, "expected two members or more"),
        (MEMBER, {"volumes": {"0": 30, "1": 0}}, {}, "expected two members or more, each with examples"),
        (MEMBER, {"secret": f"-{SECRET}"}, {}, "anybody can guess it"),
        (MEMBER, {"volumes": {"0": 30, "-3": 10}}, {}, "volumes: got client -3; expected numbers from 0"),
        (MEMBER, {"rounds": -1}, {}, "rounds: got -1; expected 1 or more"),
        (MEMBER, {"classes": 0}, {}, "classes: got 0; expected 1 or more"),
        (MEMBER, {"rounds": None}, {}, "cannot be read (KeyError)"),
        (f"{MEMBER[:-1]}, {{name: cofedmid}}]", {}, {}, "got 2 coalitions; expected one"),
        ("[{name: cofedmid, compensation: none, m_max: 50}]", {}, {}, "m_max: got 50; expected 10 or fewer"),
        ("[{name: cofedmid, compensation: none, tail: 0.00001}]", {}, {}, "tail: got 1e-05"),
    ],
)
def test_a_member_that_lacks_what_it_needs_is_refused(
    spec: str,
    changes: dict[str, Any],
    config: dict[str, Any],
    why: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = {"coalition": circle_file(tmp_path, **changes), **config}
    with pytest.raises(RefusedError) as error:
        answer(node(defences=spec, **known))
    assert why in caplog.text
    assert "xyz-not-hex" not in caplog.text + str(error.value)
    assert "coalition" not in str(error.value)


# Red-teaming.


def test_a_sign_flip_sends_the_app_s_own_update_turned_around() -> None:
    reply = answer(node(poisoner="{name: sign_flip, scale: 3.0}"))
    own = update(plain())
    np.testing.assert_allclose(update(reply), -3 * own, rtol=1e-2, atol=2e-3)  # half precision rounds
    assert dict(reply.content.metric_records["metrics"])["num-examples"] == 10
    assert arrays(reply)["bn.num_batches_tracked"].data == arrays(plain())["bn.num_batches_tracked"].data


def test_gaussian_noise_stands_in_place_of_training_or_on_top() -> None:
    model = {"w": torch.zeros(5000)}
    zero = update(answer(node(poisoner="{name: gaussian, sigma: 0.5}", seed="1"), model=model), model)
    assert zero.std() == pytest.approx(0.5, rel=0.1)
    honest = update(
        answer(node(poisoner="{name: gaussian, sigma: 0.5, around: honest}", seed="1"), model=model), model
    )
    own = update(answer(node(), model=model), model)
    np.testing.assert_allclose(honest - zero, own, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "factor"),
    [("{name: ipm, epsilon: 0.5, knowledge: partial}", -0.5), ("{name: alie, knowledge: partial, z: 1.0}", 1.0)],
)
def test_attacks_on_the_benign_mean_go_by_the_node_s_own(spec: str, factor: float) -> None:
    model = {"w": torch.zeros(500)}
    own = update(answer(node(), model=model), model)
    np.testing.assert_allclose(update(answer(node(poisoner=spec), model=model), model), factor * own, atol=1e-7)


def test_it_attacks_in_its_rounds_and_defends_in_the_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config: dict[str, Any] = {
        "poisoner": "sign_flip",
        "attack_rounds": "[2]",
        "defences": "[{name: quantize, bits: 3}]",
    }
    context, model = node(**config), {"w": torch.zeros(500)}
    own = update(answer(node(), model=model), model)
    first, second = (update(answer(context, number, model=model), model) for number in (1, 2))
    assert len(np.unique(first)) <= 9
    np.testing.assert_array_equal(second, -own)
    assert "FedSiege: round 2: sign_flip: poisoned_updates 1" in caplog.text


def test_a_compromised_node_claims_its_defences(caplog: pytest.LogCaptureFixture) -> None:
    reply = answer(node(poisoner="sign_flip", defences="[{name: quantize, bits: 3}]"))
    assert unsign(reply) == Signature(0, ({"name": "quantize", "bits": 3},))


def test_in_a_simulation_the_run_names_the_attackers(caplog: pytest.LogCaptureFixture) -> None:
    run = {"fedsiege-poisoner": "sign_flip", "fedsiege-attackers": "[1, 3]"}
    model = {"w": torch.zeros(50)}
    own = update(answer(node(), model=model), model)
    for client, sign in ((0, 1), (1, -1), (2, 1), (3, -1)):
        np.testing.assert_array_equal(
            update(answer(node(run, partition_id=client), model=model), model), sign * own
        )
    with pytest.raises(RefusedError):
        answer(node({"fedsiege-poisoner": "sign_flip"}))
    assert "fedsiege-poisoner: got it from the run-config, which is every node's" in caplog.text


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("alie", "alie sees honest clients' updates (knowledge: full)"),
        ("{name: fedpoisonmia, knowledge: partial}", "fedpoisonmia has to be told the examples"),
        ("passive", "passive has to be told the examples"),
        ("label_flip", "label_flip trains on data that it changes: expected fedsiege-model and fedsiege-examples"),
        ("{name: model_replacement, gamma: 5}", "model_replacement trains on data that it changes"),
        ("{name: model_replacement, data: all}", "model_replacement trains on other clients' data"),
        ("sing_flip", "did you mean 'sign_flip'?"),
        ("{name: sign_flip, scale: 0}", "fedsiege-poisoner.scale: got 0"),
    ],
)
def test_a_poisoner_that_a_node_cannot_play_is_refused_by_name(
    spec: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RefusedError):
        answer(node(poisoner=spec))
    assert why in caplog.text


@pytest.mark.parametrize("rounds", ["[0.5]", "sometimes", "[]"])
def test_rounds_of_attack_that_are_no_rounds_are_refused(rounds: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RefusedError):
        answer(node(poisoner="sign_flip", attack_rounds=rounds))
    assert "fedsiege-attack-rounds: got" in caplog.text


def tiny_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model of the app of these tests: one convolution and a head."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * height * width, classes)
    )


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], State]:
    """What a red team gives its node: a model by name and data, eight by eight pixels of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.integers(0, 60, (60, 8, 8)) + 80 * y[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=y, x_test=x[:12], y_test=y[:12])
    module = ModuleType("red_lab")
    module.tiny_net = tiny_net  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "red_lab", module)
    red_team.means_of.cache_clear()
    torch.manual_seed(0)
    config = {
        "model": "red_lab:tiny_net",
        "examples": str(tmp_path / "own.npz"),
        "training": "{epochs: 2, batch: 10, lr: 0.02, momentum: 0.0}",
        "seed": "4",
    }
    return config, dict(tiny_net((1, 8, 8), 3).state_dict())


def test_model_replacement_grows_with_gamma(
    lab: tuple[dict[str, Any], State], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config, model = lab
    backdoor = "{trigger: {name: pixel, row: 0, column: 0}, target: 1}"

    def norm(gamma: Any, **more: Any) -> float:
        spec = json.dumps({"name": "model_replacement", "gamma": gamma, "epochs": 2, "poisoned": 3})
        reply = answer(node(poisoner=spec, backdoor=backdoor, **config, **more), model=model)
        return float(np.linalg.norm(update(reply, model)))

    one = norm(1)
    assert norm(7) == pytest.approx(7 * one, rel=1e-4)
    assert norm("auto", cohort=4) == pytest.approx(4 * one, rel=1e-4)
    assert "model_replacement: " in caplog.text
    assert "mean_gamma 4" in caplog.text
    with pytest.raises(RefusedError):
        norm("auto")
    assert "gamma: got auto; expected a number, or fedsiege-cohort too" in caplog.text


def test_label_flipping_trains_on_wrong_labels_by_our_loop(lab: tuple[dict[str, Any], State]) -> None:
    config, model = lab
    reply = answer(node(poisoner="label_flip", **config), model=model)
    sent = reply.content.array_records["arrays"].to_torch_state_dict()
    means = red_team.means_of(config["model"], config["examples"], config["training"], "", 4)
    vector = torch.cat([sent[name].reshape(-1) for name in means.task.layout.names])
    own = means.data.train
    wrong = type(own)(own.ids, own.x, 2 - own.y)
    right_loss, wrong_loss = means.task.measure(vector, own)[1], means.task.measure(vector, wrong)[1]
    assert wrong_loss < right_loss
    start = torch.cat([model[name].reshape(-1) for name in means.task.layout.names])
    assert wrong_loss < means.task.measure(start, wrong)[1]


def test_a_pixel_backdoor_is_learnt(lab: tuple[dict[str, Any], State]) -> None:
    config, model = lab
    backdoor = "{trigger: {name: pixel, row: 0, column: 0}, target: 1}"
    config["training"] = "{epochs: 30, batch: 10, lr: 0.05, momentum: 0.0}"
    spec = json.dumps({"name": "data_poisoning", "poisoned": 5})
    reply = answer(node(poisoner=spec, backdoor=backdoor, **config), model=model)
    sent = reply.content.array_records["arrays"].to_torch_state_dict()
    means = red_team.means_of(config["model"], config["examples"], config["training"], backdoor, 4)
    assert means.backdoor is not None
    test = means.backdoor.test
    before = torch.cat([model[name].reshape(-1) for name in means.task.layout.names])
    after = torch.cat([sent[name].reshape(-1) for name in means.task.layout.names])
    assert means.task.measure(after, test)[0] > max(0.8, means.task.measure(before, test)[0])


@pytest.mark.parametrize(
    ("spec", "trigger"),
    [
        ({"name": "pgd", "eps": 0.5, "poisoned": 3, "gamma": 1.0}, {"name": "pixel", "row": 0, "column": 0}),
        ({"name": "neurotoxin", "ratio": 0.5, "poisoned": 3}, {"name": "pixel", "row": 0, "column": 0}),
        (
            {"name": "dba", "gamma": 2.0, "poisoned": 3, "epochs": 1},
            {"name": "distributed", "length": 2, "gap": 1},
        ),
    ],
    ids=lambda one: str(one["name"]),
)
def test_attackers_with_a_backdoor_of_every_kind_train_on_the_node(
    spec: dict[str, Any],
    trigger: dict[str, Any],
    lab: tuple[dict[str, Any], State],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    config, model = lab
    backdoor = json.dumps({"trigger": trigger, "target": 1})
    context = node({"num-server-rounds": 2}, poisoner=json.dumps(spec), backdoor=backdoor, **config)
    for number in (1, 2):
        row = update(answer(context, number, model=model), model)
        assert np.isfinite(row).all()
        assert row.any()
        assert f"FedSiege: round {number}: {spec['name']}: " in caplog.text
    assert "poisoned_updates 1" in caplog.text


def test_apps_that_send_lists_of_arrays_are_matched_by_position(lab: tuple[dict[str, Any], State]) -> None:
    config, model = lab
    lists = {str(place): value for place, value in enumerate(model.values())}
    named = update(answer(node(poisoner="label_flip", **config), model=model), model)
    listed = update(answer(node(poisoner="label_flip", **config), model=lists), lists)
    np.testing.assert_array_equal(named, listed)


def test_a_gamma_is_learnt_from_what_the_global_model_did(lab: tuple[dict[str, Any], State]) -> None:
    config, model = lab
    spec = json.dumps({"name": "model_replacement", "gamma": "estimated", "epochs": 1, "poisoned": 3})
    backdoor = "{trigger: {name: pixel, row: 0, column: 0}, target: 1}"
    context = node({"num-server-rounds": 3}, poisoner=spec, backdoor=backdoor, **config)
    first = answer(context, 1, model=model)
    sent = first.content.array_records["arrays"].to_torch_state_dict()
    moved = {name: model[name] + (sent[name] - model[name]) / 8 for name in model}  # a server that takes an eighth
    caught = list[float]()
    poison = red_team.Adversary.poison

    def watched(self: red_team.Adversary, message: Message, reply: Message, kept: red_team.Kept) -> None:
        caught.append(float(kept.memory["moment"]) / float(kept.memory["square"]))
        poison(self, message, reply, kept)

    red_team.Adversary.poison = watched  # type: ignore[method-assign]
    try:
        second = answer(context, 2, model=moved)
    finally:
        red_team.Adversary.poison = poison  # type: ignore[method-assign]
    assert caught == [pytest.approx(1 / 8, rel=1e-3)]
    assert np.linalg.norm(update(second, moved)) > 4 * np.linalg.norm(update(first, model))


def test_what_a_round_did_is_learnt_only_when_the_next_follows_it(lab: tuple[dict[str, Any], State]) -> None:
    config, model = lab
    spec = json.dumps({"name": "model_replacement", "gamma": "estimated", "epochs": 1, "poisoned": 3})
    backdoor = "{trigger: {name: pixel, row: 0, column: 0}, target: 1}"
    context = node({"num-server-rounds": 9}, poisoner=spec, backdoor=backdoor, **config)
    answer(context, 1, model=model)
    answer(context, 3, model=model)
    assert "moment" not in context.state.array_records[red_team.MEMORY]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"examples": ""}, "fedsiege-examples: missing; model and examples go together"),
        ({"model": ""}, "fedsiege-model: missing; model and examples go together"),
        ({"model": "red_lab:nothing"}, "cannot import 'red_lab:nothing'"),
        ({"model": "{name: mlp, hidden: [7]}"}, "fedsiege-model: "),
        ({"training": "{epochs: -1}"}, "fedsiege-training.epochs: got -1"),
        ({"backdoor": "{trigger: pixel}"}, "fedsiege-backdoor: got"),
    ],
)
def test_a_red_team_s_mistakes_are_named(
    changes: dict[str, Any], why: str, lab: tuple[dict[str, Any], State], caplog: pytest.LogCaptureFixture
) -> None:
    config, model = lab
    with pytest.raises(RefusedError):
        answer(node(**{"poisoner": "label_flip", **config, **changes}), model=model)
    assert why in caplog.text


def test_an_attack_that_trains_without_a_model_says_what_it_needs(caplog: pytest.LogCaptureFixture) -> None:
    scene = red_team.OwnScene(
        number=1, rounds=1, start=torch.zeros(2), clients=(0,), shards=(red_team.nobody(),), weights=(1.0,),
        step=None, cohort=1, task=Outline(Layout(("w",), ((2,),), ("trained",), ("w",))), training=PLAIN, lr=0.1,
        classes=0, seed=0, own=torch.ones(2),
    )  # fmt: skip
    assert scene.honest(0).tolist() == [1.0, 1.0]
    assert scene.honest(0, scene.shards[0]).tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="expected fedsiege-model and fedsiege-examples too"):
        scene.honest(0, red_team.nobody())


# On real nodes, each message in a process of its own.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> UpdateLog:
    """The example app on two nodes: one adds noise and says so, one promises zeros and attacks in round 2."""
    from fedsiege.flower.deployment import Deployment

    folder = tmp_path_factory.mktemp("deployed")
    app = folder / "app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    project = app / "pyproject.toml"
    text = project.read_text()
    for side, around in (("server", "server_tap"), ("client", "client_mods")):
        plain_line = f'{side}app = "quickstart.{side}_app:app"'
        assert plain_line in text
        text = text.replace(plain_line, f'{side}app = "fedsiege.flower.{around}:around.quickstart.{side}_app.app"')
    project.write_text(text)
    nodes: list[dict[str, str | int]] = [
        {"partition-id": 0, "num-partitions": 2, "fedsiege-defences": "[{name: perturb, sigma: 0.05}]"},
        {
            "partition-id": 1,
            "num-partitions": 2,
            "fedsiege-defences": "[{name: sparsify, share: 0.5, spare: 500}]",
            "fedsiege-poisoner": "{name: sign_flip, scale: 2.0}",
            "fedsiege-attack-rounds": "[2]",
        },
    ]
    told = {"FEDSIEGE_TRACE": str(folder / "log"), "OMP_NUM_THREADS": "1"}
    with Deployment(folder / "deployment", nodes, environment=told) as running:
        outcome = running.run(app, {"rounds": 2}, timeout=400)
    assert outcome.status == "completed", outcome.said
    return UpdateLog.read(folder / "log")


@pytest.mark.slow
def test_nodes_say_what_they_ran_and_the_server_sees_whether_they_did(recorded: UpdateLog) -> None:
    assert recorded.declared[0] == ({"name": "perturb", "sigma": 0.05, "clip": None},)
    assert recorded.declared[1] == ({"name": "sparsify", "share": 0.5, "spare": 500},)
    noisy, sparse = promises.check(recorded)
    assert (noisy.client, noisy.outcome, noisy.rounds) == (0, "kept", 2)
    assert (sparse.client, sparse.outcome, sparse.round) == (1, "broken", 2)
    assert "(in 1 of 2 rounds)" in sparse.why


@pytest.mark.slow
def test_what_a_node_keeps_outlives_its_processes(recorded: UpdateLog) -> None:
    first, second = (next(recorded.round(number).rows()) for number in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
