import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsiege.errors import InputError
from fedsiege.flower.chain import AttachError, Chain


class Thing:
    """What is looked for."""

    def __init__(self, name: str = "") -> None:
        self.name = name


class Wrapped:
    """What it is wrapped in."""

    def __init__(self, thing: Thing) -> None:
        self.thing = thing


around = Chain(Wrapped, Thing)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `theirs` with things in it, somewhere on the path."""
    folder = tmp_path / "theirs"
    (folder / "inner").mkdir(parents=True)
    line = f"from {__name__} import Thing\n"
    (folder / "__init__.py").write_text(f"{line}thing = Thing('top')\nboth = Thing('attribute')\n")
    (folder / "both.py").write_text(f"{line}thing = Thing('submodule')\n")
    (folder / "broken.py").write_text("import surely_not_installed\n")
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "deep.py").write_text(
        f"{line}class Holder:\n    thing = Thing('held')\nholder = Holder()\nbare = Holder.thing\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_a_chain_imports_as_far_as_it_can_and_wraps_what_it_finds() -> None:
    assert "theirs" not in sys.modules
    found = around.theirs.inner.deep.bare
    assert isinstance(found, Wrapped)
    assert found.thing.name == "held"
    assert around.theirs.thing.thing.name == "top"


@pytest.mark.usefixtures("package")
def test_a_chain_follows_attributes_behind_the_last_module() -> None:
    assert around.theirs.inner.deep.holder.thing.thing.name == "held"


@pytest.mark.usefixtures("package")
def test_a_submodule_goes_before_an_attribute_of_its_name() -> None:
    assert around.theirs.both.thing.thing.name == "submodule"


@pytest.mark.usefixtures("package")
def test_what_fails_in_the_module_itself_is_said_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        _ = around.theirs.broken


@pytest.mark.usefixtures("package")
def test_a_name_that_leads_nowhere_is_named_with_what_there_is() -> None:
    with pytest.raises(AttachError, match="app: their_s is no module that can be imported; expected the module"):
        _ = around.their_s
    with pytest.raises(AttachError, match=r"app: module theirs\.inner\.deep has no app; expected bare$"):
        _ = around.theirs.inner.deep.app
    with pytest.raises(AttachError, match=r"app: theirs\.inner\.deep\.holder has no thin; expected thing$"):
        _ = around.theirs.inner.deep.holder.thin
    with pytest.raises(
        AttachError, match=r"app: theirs\.inner\.deep\.number has no x; expected the name of a Thing$"
    ):
        _ = around.theirs.inner.deep.number.x
    with pytest.raises(InputError, match=r"app: module theirs has no inne; expected both or thing$"):
        _ = around.theirs.inne
    with pytest.raises(InputError, match=r"app: module theirs\.inner has no dep; expected deep"):
        _ = around.theirs.inner.dep


@pytest.mark.usefixtures("package")
def test_asking_for_a_name_is_no_error() -> None:
    assert not hasattr(around, "their_s")
    assert not hasattr(around, "__wrapped__")
    assert not hasattr(around.theirs, "__file__")
    assert not hasattr(around.theirs.inner.deep, "nothing")
    assert hasattr(around.theirs, "thing")


@pytest.mark.usefixtures("package")
def test_a_chain_can_be_copied_and_pickled() -> None:
    for again in (copy.copy(around), copy.deepcopy(around), pickle.loads(pickle.dumps(around))):
        assert again.theirs.thing.thing.name == "top"
    link = around.theirs.inner
    for again in (copy.copy(link), copy.deepcopy(link), pickle.loads(pickle.dumps(link))):
        assert again.deep.bare.thing.name == "held"
    assert repr(link) == "<names followed to theirs.inner, where a Thing is expected>"


def test_the_name_that_flower_looks_for_stands_in_the_file_as_a_plain_assignment() -> None:
    reference = pytest.importorskip("flwr.supercore.object_ref")
    assert reference.validate("fedsiege.flower.server_tap:around.quickstart.server_app.app") == (True, None)
