"""Code replaced in memory: held against its source at the start, against the start later; no false alarms."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import mutation_guard

import nextscale
from nextscale import rng
from nextscale.data import loader
from nextscale.generate import guidance
from nextscale.integrity.memory import replaced_functions
from nextscale.integrity.watch import Watch
from nextscale.prior import layers
from nextscale.train import optimizer as train_optimizer
from nextscale.train import schedules
from nextscale.train.watching import Watching

ADAMW = sys.modules["torch.optim.adamw"]
ADAM = sys.modules["torch.optim.adam"]
FUNCTIONAL = sys.modules["torch.nn.functional"]
LINEAR = sys.modules["torch.nn.modules.linear"]


def _modules(*modules: ModuleType) -> dict[str, ModuleType]:
    return {module.__name__: module for module in modules}


LOOKED_AT = _modules(
    ADAMW, ADAM, FUNCTIONAL, LINEAR, schedules, train_optimizer, guidance, loader, rng, layers
)


def _scaled(original: Callable[..., Any]) -> Callable[..., Any]:
    """What an attacker writes, dressed up as the original."""

    @functools.wraps(original)
    def scaled(*arguments: Any, **named: Any) -> Any:
        return original(*arguments, **named)

    return scaled


def _exec(code: str, name: str, namespace: dict[str, Any]) -> Any:
    """A function that claims to come from the file of a module."""
    scope = dict(namespace)
    exec(compile(code, namespace["__file__"], "exec"), scope)
    return scope[name]


class _Evil:
    """A class that claims to be another."""

    def step(self) -> None:
        """Nothing."""


ATTACKS: dict[str, tuple[Any, str, Callable[[Any], Any], str]] = {
    "a method": (ADAM.Adam, "step", lambda _: lambda self: None, r"torch\.optim\.adam\.Adam\.step"),
    "a wrapper": (ADAM.Adam, "step", _scaled, r"torch\.optim\.adam\.Adam\.step"),
    "a partial": (FUNCTIONAL, "linear_", lambda _: functools.partial(_scaled(len)), r"functional\.linear_"),
    "another method": (ADAM.Adam, "step", lambda _: torch.optim.SGD.step, r"Adam\.step is not what its"),
    "a function": (schedules, "learning_rate", _scaled, r"schedules\.learning_rate is not"),
    "an imported function": (train_optimizer, "is_cut", lambda _: lambda _: True, r"r\.is_cut is not"),
    "a function that lies about its file": (
        schedules, "weight_decay",
        lambda _: _exec("def weight_decay(*_, **__): return 0.0", "weight_decay", vars(schedules)),
        r"schedules\.weight_decay is not",
    ),
    "no function": (FUNCTIONAL, "cross_entropy", lambda _: torch.add, r"cross_entropy is no function"),
    "a static method": (LINEAR.Linear, "forward", lambda _: staticmethod(lambda *_: 0), r"r\.forward is not"),
    "the order of an epoch": (rng, "epoch_order", lambda _: lambda *_: range(9), r"rng\.epoch_order is not"),
    "the order that is kept": (loader, "_order", lambda _: lambda *_: range(9), r"loader\._order is "),
    "the random numbers of a sample": (rng, "sample_uniforms", _scaled, r"rng\.sample_uniforms is not"),
    "the random numbers of a generator": (rng, "_generator", _scaled, r"rng\._generator is not"),
    "attention": (layers, "attend_to", _scaled, r"layers\.attend_to is not"),
    "attention in a layer": (layers.Attention, "forward", _scaled, r"Attention\.forward is not"),
    "a class": (ADAMW, "AdamW", lambda _: _Evil, r"adamw\.AdamW is a class of"),
}  # fmt: skip


def test_there_is_no_false_alarm_here() -> None:
    assert replaced_functions(LOOKED_AT) == []
    assert Watch(LOOKED_AT).changed() == []


@pytest.mark.attack(by="look at the memory", names="module and function")
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_replaced_is_named(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:

    holder, name, make, expected = ATTACKS[attack]
    module = holder if isinstance(holder, ModuleType) else sys.modules[holder.__module__]
    watch = Watch(_modules(module))
    original = vars(holder).get(name)
    monkeypatch.setattr(holder, name, make(original), raising=False)
    found = replaced_functions(_modules(module))
    assert len(found) == 1 and re.search(expected, found[0]), found
    if original is not None:
        assert [text.rsplit(".", 1)[1] for text in watch.changed()] == [name]


def test_what_torch_compile_adds_to_a_module_is_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(_modules(schedules))
    monkeypatch.setattr(schedules, "__compiled_fn_3_d73f", lambda: None, raising=False)
    assert replaced_functions(_modules(schedules)) == [] and watch.changed() == []


@pytest.mark.attack(by="look at the memory", names="the function")
def test_the_code_and_defaults_inside_a_function_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(LOOKED_AT)
    monkeypatch.setattr(
        schedules.weight_decay, "__code__", (lambda settings, step, *, num_steps: 0.0).__code__
    )
    assert watch.changed() == ["nextscale.train.schedules.weight_decay"]
    found = replaced_functions(_modules(schedules))[0]
    assert "schedules.weight_decay is not what its source file says" in found
    monkeypatch.undo()
    assert watch.changed() == []
    monkeypatch.setattr(FUNCTIONAL.dropout, "__defaults__", (0.9, True, False))
    assert watch.changed() == ["torch.nn.functional.dropout"]


def test_a_whole_process_raises_no_alarm() -> None:
    """Every module of nextscale imported, an optimizer stepped: nothing is foreign, nothing changes."""
    code = """
import importlib, pkgutil, torch, nextscale
from nextscale.integrity.memory import replaced_functions
from nextscale.integrity.watch import Watch
for module in pkgutil.walk_packages(nextscale.__path__, "nextscale."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 3))
optimizer = torch.optim.AdamW(layer.parameters())
watch = Watch()
layer(torch.rand(2, 3)).sum().backward()
optimizer.step()
print(replaced_functions(), watch.changed(), len(watch.entries) > 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] [] True"


def test_modules_that_are_imported_later_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    assert watch.added() == []
    late = ModuleType("nextscale.late")
    late.__file__ = schedules.__file__
    late.learning_rate = schedules.learning_rate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nextscale.late", late)
    assert watch.added() == []
    later = ModuleType("nextscale.later")
    later.__file__ = schedules.__file__
    later.learning_rate = _scaled(schedules.learning_rate)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nextscale.later", later)
    assert "nextscale.later.learning_rate is not what its source file says" in watch.added()[0]
    monkeypatch.setattr(late, "learning_rate", len)
    assert watch.changed() == ["nextscale.late.learning_rate"]


# objects


@pytest.fixture
def watching() -> Watching:
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))
    return Watching(model, torch.optim.AdamW(model.parameters()), every=1)


def test_an_honest_model_passes(watching: Watching) -> None:
    watching.check(1)
    watching.module(torch.rand(2, 3)).sum().backward()
    watching.optimizer.step()
    watching.check(2)


def _own_forward(watching: Watching) -> object:
    watching.module[0].forward = lambda x: x  # type: ignore[union-attr, operator]
    return None


OBJECTS: dict[str, tuple[Callable[[Watching], Any], str]] = {
    "forward of a layer": (_own_forward, r"layer 0\.forward"),
    "hook of a layer": (
        lambda watching: watching.module[0].register_forward_hook(lambda *_: None), r"layer 0\._forward_hooks"
    ),
    "hook of a parameter": (
        lambda watching: watching.module[0].weight.register_hook(lambda gradient: -gradient),
        r"parameter 0\.weight\._backward_hooks",
    ),
    "hook of all layers": (
        lambda _: nn.modules.module.register_module_forward_hook(lambda *_: None), r"_global_forward_hooks"
    ),
    "hook of the optimizer": (
        lambda watching: watching.optimizer.register_step_pre_hook(lambda *_: None),
        r"optimizer\._optimizer_step_pre_hooks",
    ),
    "step of the optimizer": (
        lambda watching: setattr(watching.optimizer, "step", lambda closure=None: None), r"optimizer\.step"
    ),
}  # fmt: skip


@pytest.mark.attack(by="look at the memory", names="layer, parameter or attribute")
@pytest.mark.parametrize("attack", OBJECTS)
def test_what_was_put_into_objects_is_named(attack: str, watching: Watching) -> None:
    put, expected = OBJECTS[attack]
    handle = put(watching)
    try:
        with pytest.raises(
            ValueError, match=rf"replaced in memory before step 7: .*{expected}.*nothing since"
        ):
            watching.check(7)
    finally:
        if hasattr(handle, "remove"):
            handle.remove()


@pytest.mark.attack(by="look at the memory", names="the function")
def test_a_cache_that_differs_from_its_source_is_found(tmp_path: Path) -> None:
    """Python takes a cache whose header has the source's size and time, whatever is in it."""
    code = f"""
import importlib.util, os, py_compile, sys
sys.path.insert(0, {str(Path(nextscale.__file__).parent.parent)!r})
source = importlib.util.find_spec("nextscale.train.schedules").origin
cache = {str(tmp_path / "s.pyc")!r}
text = open(source).read()
evil = {str(tmp_path / "s.py")!r}
assert "settings.hold_share" in text
open(evil, "w").write(text.replace("settings.hold_share", "settings.hold_share * 1.001"))
py_compile.compile(evil, cfile=cache, dfile=source, doraise=True)
spec = importlib.util.spec_from_file_location("nextscale.train.schedules", cache)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.__file__ = source
from nextscale.integrity.memory import replaced_functions
found = replaced_functions({{"nextscale.train.schedules": module}})
print(*found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("nextscale.train.schedules.learning_rate is not what its source"), (
        done.stdout
    )


def test_what_the_compiler_wraps_is_no_alarm_and_what_others_wrap_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile replaces `Module.__init__` when it first compiles, in the middle of a run."""
    own = {name: vars(nn.Module)[name] for name in ("__init__", "__setstate__")}
    for name, value in own.items():
        monkeypatch.setattr(nn.Module, name, value)  # to be put back afterwards
    monkeypatch.setattr(nn.Module, "___needs_generation_tag_patch", True, raising=False)
    watch = Watch()
    mutation_guard.install_generation_tagging_init()
    assert nn.Module.__init__ is not own["__init__"]
    assert watch.changed() == [] and watch.changed() == []

    def wrapped(self: nn.Module, *given: object, **more: object) -> None:
        own["__init__"](self, *given, **more)

    monkeypatch.setattr(nn.Module, "__init__", wrapped)
    assert watch.changed() == ["torch.nn.modules.module.Module.__init__"]
