"""Reading files that others wrote: tensors are taken, anything that would run code is refused and named."""

from __future__ import annotations

import operator
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from golden_weights import State, states, wrapped
from nextscale.convert import convert_files, read_released_file

SYSTEM = f"{os.system.__module__}.system"  # posix.system


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Unpickled:
    """Somebody's own class."""


def hostile(kind: str, marker: Path) -> tuple[Any, list[str]]:
    """Something to save, and the names that the refusal must give."""
    touch = Call(os.system, f"touch {marker}")
    return {
        "bare call": (touch, [SYSTEM]),
        "among tensors": ({"weight": torch.zeros(2), "more": {"deep": [touch]}}, [SYSTEM]),
        "eval": (Call(eval, f"open({str(marker)!r}, 'w')"), ["builtins.eval"]),
        "two of them": ([touch, Call(operator.attrgetter, "x")], [SYSTEM, "operator.attrgetter"]),
        "in a trainer's file": ({"trainer": {"vae_local": {}, "var_wo_ddp": {}}, "args": touch}, [SYSTEM]),
        "a whole module": (torch.nn.Linear(2, 2), ["torch.nn.modules.linear.Linear"]),
        "own class": ({"weight": torch.zeros(2), "args": Unpickled()}, ["Unpickled"]),
    }[kind]


KINDS = (
    "bare call", "among tensors", "eval", "two of them", "in a trainer's file", "a whole module", "own class",
)  # fmt: skip


@pytest.mark.attack(by="reading", names="what it would have run")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_executable_content_is_refused(tmp_path: Path, kind: str, zipped: bool, protocol: int) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    content, names = hostile(kind, marker)
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match="would run code") as caught:
        read_released_file(path)
    message = str(caught.value)
    assert not marker.exists()
    assert str(path) in message and "\n" not in message
    assert all(name in message for name in names), message
    assert "_rebuild_tensor" not in message and "OrderedDict" not in message and "Storage" not in message


@pytest.mark.attack(by="reading", names="what it would have run")
def test_a_plain_pickle_is_refused_by_name(tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol=protocol))
        with pytest.raises(ValueError, match=SYSTEM):
            read_released_file(path)
    assert not marker.exists()


def test_long_lists_of_names_are_cut(tmp_path: Path) -> None:
    functions = [os.system, os.remove, os.rename, os.mkdir, os.rmdir, os.chmod, os.getpid]
    torch.save([Call(function) for function in functions], tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"chmod, .* and 2 more"):
        read_released_file(tmp_path / "model.pth")


def write(path: Path, kind: str) -> None:
    zipped = kind != "half a legacy file"
    torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    if kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "nothing":
        path.unlink()
    elif kind == "safetensors":
        save_file({"weight": torch.zeros(2)}, path)
    elif kind in ("a list", "a pickled dict"):
        torch.save([torch.zeros(2)], path) if kind == "a list" else path.write_bytes(pickle.dumps({"a": 1}))
    else:
        text = b"<html>\nnot found</html>\n"
        contents = {"text": text, "empty": b"", "other zip": b"PK\x03\x04" + text}
        path.write_bytes(contents.get(kind, whole[: len(whole) // 2]))


@pytest.mark.parametrize(
    "kind",
    [
        "nothing", "a folder", "text", "empty", "half a zip file", "half a legacy file", "other zip",
        "safetensors", "a list", "a pickled dict",
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pth"
    write(path, kind)
    reasons = r"not a file|not a readable PyTorch checkpoint|expected a state dict"
    with pytest.raises(ValueError, match=reasons) as caught:
        read_released_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "run code" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_are_read(tmp_path: Path, zipped: bool) -> None:
    linear = torch.nn.Linear(2, 3)
    torch.save(linear.state_dict(), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    content = read_released_file(tmp_path / "model.pth")
    assert list(content) == ["weight", "bias"] and torch.equal(content["weight"], linear.weight)


def save(tmp_path: Path, tokenizer: Any, prior: Any) -> tuple[Path, Path]:
    torch.save(tokenizer, tmp_path / "vae.pth")
    torch.save(prior, tmp_path / "var.pth")
    return tmp_path / "vae.pth", tmp_path / "var.pth"


def test_a_misfit_names_the_files_and_the_key(tmp_path: Path) -> None:
    tokenizer, prior = states("base")
    del prior["head.bias"]
    vae, var = save(tmp_path, tokenizer, prior)
    with pytest.raises(ValueError, match=r"vae\.pth with .*var\.pth cannot be converted: .* head\.bias is "):
        convert_files(vae, prior=var, out=tmp_path / "model")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["vae.pth", "var.pth"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    vae, var = save(tmp_path, *states("base"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        convert_files(vae, prior=var, out=tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "vae.pth", "var.pth"]


def test_a_tokenizer_alone_and_inside_a_trainer_file(tmp_path: Path) -> None:
    tokenizer, prior = states("base")
    vae, trainer = save(tmp_path, tokenizer, wrapped(tokenizer, prior))
    sides = (1, 2, 3, 4)
    for path in (vae, trainer):
        written = convert_files(path, prior=None, out=tmp_path / "model", patch_nums=sides, unit_codes=True)
        assert written.settings.prior is None and written.settings.tokenizer.quantizer.unit_codes
        assert not (tmp_path / "model" / "prior.safetensors").exists()


def test_options_reach_the_model(tmp_path: Path) -> None:
    tokenizer, prior = states("base")
    dropped = ("scale_mul_1H11", "lvl_1L")
    bare: State = {key: value for key, value in prior.items() if not key.endswith(dropped)}
    vae, var = save(tmp_path, tokenizer, bare)
    written = convert_files(vae, prior=var, out=tmp_path / "model", patch_nums=(1, 2, 3, 4), num_heads=2)
    assert written.settings.prior is not None
    assert (written.settings.prior.heads, written.settings.prior.unit_qk) == (2, False)
