"""Files that are whole or absent, and equal where their content is equal."""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import fedsiege
from fedsiege.errors import InputError
from fedsiege.files import described, read_tensors, write_bytes, write_json, write_tensors

SOURCES = Path(fedsiege.__file__).parent
TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "a": torch.tensor([1, 2], dtype=torch.int64),
    "flag": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}
ABOUT = {"round": 3, "notes": {"loss": 0.1, "names": ["é"]}}


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("pd", "read_pickle")}


@pytest.mark.parametrize(
    "path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.relative_to(SOURCES).as_posix()
)
def test_nothing_is_loaded_by_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & UNSAFE_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in UNSAFE_MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            assert (owner, node.func.attr) not in UNSAFE_CALLS
            allowed = [ast.literal_eval(k.value) for k in node.keywords if k.arg == "allow_pickle"]
            assert allowed == ([False] if (owner, node.func.attr) == ("np", "load") else [])


def test_tensors_and_description_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, ABOUT)
    assert described(path) == ABOUT
    found = read_tensors(path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """Safetensors writes several metadata keys in an order that changes from process to process."""
    code = (
        "import sys, torch; from pathlib import Path; from fedsiege.files import write_tensors\n"
        "write_tensors(Path(sys.argv[1]), {'b': torch.ones(2), 'a': torch.zeros(3)}, {'round': 1, 'schema': 1})"
    )
    paths = [tmp_path / str(number) for number in range(2)]
    running = [subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment()) for path in paths]
    assert [process.wait() for process in running] == [0, 0]
    assert len({path.read_bytes() for path in paths}) == 1
    about = json.loads(paths[0].read_bytes()[8:].partition(b"}}")[0].decode() + "}}")["__metadata__"]
    assert len(about) == 1, "with two keys the order would be chance"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCES.parent), "OMP_NUM_THREADS": "1"}


def torn(content: bytes) -> bytes:
    return content[:-3]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def renamed(content: bytes) -> bytes:
    """The same values under another name, the metadata untouched."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = load(content)
    tensors["c"] = tensors.pop("a")
    return save(tensors, header["__metadata__"])


def redescribed(content: bytes) -> bytes:
    return content.replace(b'\\"round\\": 3', b'\\"round\\": 4')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torn, "cannot be read"),
        (flipped, "checksum does not match"),
        (renamed, "checksum does not match"),
        (redescribed, "checksum does not match"),
        (lambda _: b"", "cannot be read"),
        (lambda _: b"not tensors at all, but long enough for a header", "cannot be read"),
        (lambda _: save({"a": torch.ones(2)}), "cannot be read"),
        (lambda _: save({"a": torch.ones(2)}, {"fedsiege": "[1]"}), "cannot be read"),
        (lambda _: save({"a": torch.ones(2)}, {"fedsiege": "{"}), "cannot be read"),
    ],
)
def test_a_file_that_is_torn_or_altered_is_an_input_error(tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, ABOUT)
    before = path.read_bytes()
    path.write_bytes(spoil(before))
    assert path.read_bytes() != before
    with pytest.raises(InputError, match=f"x.safetensors: .*{message}"):
        described(path)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors: cannot be read"):
        described(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_was_there_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x.json"
    write_bytes(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_content_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    sync = os.fsync

    def watched(number: int) -> None:
        seen.append((tmp_path / "x").exists())
        sync(number)

    monkeypatch.setattr(os, "fsync", watched)
    write_bytes(tmp_path / "x", b"content")
    assert seen == [False, True], "the content first, then, under its name, the folder"


def test_json_refuses_nan_and_keeps_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": [0.5, None]})
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text())["b"] == 1
