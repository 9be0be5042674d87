"""The ledger's chain: whatever is done to the file is found, and the first bad record is named."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale.integrity import anchors
from nextscale.integrity.history import read_history
from nextscale.integrity.ledger import EMPTY, Head, Ledger, LedgerError, cut_torn, exact, follow, head_of

Lines = list[bytes]


def write_ledger(path: Path, count: int = 10) -> Head:
    """One start and steps."""
    with Ledger(path, EMPTY) as ledger:
        ledger.append("start", step=0)
        for step in range(1, count):
            ledger.append("step", step=step, loss=exact(1 / step), batch="a" * 64)
        ledger.sync()
        return ledger.head


def _forge(line: bytes, **changes: Any) -> bytes:
    """A record with other fields, and a hash that fits: what somebody writes who knows the format."""
    record = {**json.loads(line), **changes}
    del record["hash"]
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return (body[:-1] + f',"hash":"{hashlib.sha256(body.encode()).hexdigest()}"}}\n').encode()


def test_what_is_appended_comes_back(tmp_path: Path) -> None:
    head = write_ledger(tmp_path / "l")
    records = list(follow(tmp_path / "l"))
    assert [record["number"] for record in records] == list(range(10))
    assert head_of(records[-1]) == head and head_of(None) == EMPTY
    assert [float.fromhex(record["loss"]) for record in records[1:]] == [1 / step for step in range(1, 10)]
    with Ledger(tmp_path / "l", head) as ledger:
        ledger.append("stop", step=9)
    assert [record["kind"] for record in follow(tmp_path / "l")][-2:] == ["step", "stop"]


def test_numbers_that_are_none_are_text_too() -> None:
    assert [exact(float(text)) for text in ("nan", "inf", "-inf", "-0.0")] == [
        "nan",
        "inf",
        "-inf",
        "-0x0.0p+0",
    ]


def test_threads_do_not_break_the_chain(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", EMPTY) as ledger:
        threads = [
            threading.Thread(target=lambda: [ledger.append("step", step=1) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(list(follow(tmp_path / "l"))) == 200


ATTACKS: dict[str, tuple[Callable[[Lines], Lines], int, str]] = {
    "edited": (lambda x: [*x[:4], x[4].replace(b'"step":4', b'"step":5'), *x[5:]], 4, "edited or damaged"),
    "one bit": (lambda x: [*x[:4], bytes([x[4][0] ^ 1]) + x[4][1:], *x[5:]], 4, "edited or damaged"),
    "a space": (lambda x: [*x[:4], b" " + x[4], *x[5:]], 4, "edited or damaged"),
    "hash edited": (lambda x: [*x[:4], x[4][:-3] + b'x"}\n', *x[5:]], 4, "edited or damaged"),
    "forged": (lambda x: [*x[:4], _forge(x[4], loss=exact(0.1)), *x[5:]], 5, "does not follow"),
    "dropped": (lambda x: x[:4] + x[5:], 4, "is missing"),
    "first dropped": (lambda x: x[1:], 0, "is missing"),
    "doubled": (lambda x: [*x[:5], x[4], *x[5:]], 5, "is missing"),
    "swapped": (lambda x: [*x[:4], x[5], x[4], *x[6:]], 4, "is missing"),
    "swapped and numbered": (
        lambda x: [*x[:4], _forge(x[5], number=4), _forge(x[4], number=5), *x[6:]], 4, "does not follow"
    ),
    "an empty line": (lambda x: [*x[:4], b"\n", *x[4:]], 4, "edited or damaged"),
    "no record": (lambda x: [*x[:4], _forge(b'{"x":1,"hash":1}'), *x[5:]], 4, "no record"),
    "not begun": (lambda x: [_forge(x[0], previous="1" * 64), *x[1:]], 0, "does not follow"),
}  # fmt: skip


@pytest.mark.attack(by="chain of the ledger", names="the first bad record")
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_done_to_the_file_is_found(attack: str, tmp_path: Path) -> None:
    write_ledger(tmp_path / "l")
    change, number, reason = ATTACKS[attack]
    changed = change((tmp_path / "l").read_bytes().splitlines(keepends=True))
    (tmp_path / "l").write_bytes(b"".join(changed))
    with pytest.raises(LedgerError, match=rf"l: record {number} .*{reason}") as caught:
        list(follow(tmp_path / "l"))
    assert caught.value.number == number


def test_a_torn_line_is_left_out_and_can_be_cut_off(tmp_path: Path) -> None:
    write_ledger(tmp_path / "l")
    whole = (tmp_path / "l").read_bytes()
    assert cut_torn(tmp_path / "l") == ""
    (tmp_path / "l").write_bytes(whole + b'{"kind":"st\xff')
    assert len(list(follow(tmp_path / "l"))) == 10
    assert cut_torn(tmp_path / "l") == '{"kind":"st\\xff'
    assert (tmp_path / "l").read_bytes() == whole


class _FullDisk:
    """A file that takes half of what it is given."""

    name = "full"

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, line: bytes) -> int:
        return int(self.file.write(line[: len(line) // 2]))

    def fileno(self) -> int:
        return int(self.file.fileno())


def test_half_a_line_is_taken_back_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = write_ledger(tmp_path / "l")
    whole = (tmp_path / "l").read_bytes()
    with Ledger(tmp_path / "l", head) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "_file", _FullDisk(ledger._file))
            with pytest.raises(OSError, match="No space left"):
                ledger.append("step", step=10)
        assert (tmp_path / "l").read_bytes() == whole
        ledger.append("step", step=10)
    assert len(list(follow(tmp_path / "l"))) == 11


# heads that were published


def _anchor(path: Path, *, at: int, ledger: int = 0) -> anchors.Anchor:
    records = list(follow(path))
    return anchors.Anchor(records[ledger]["hash"], head_of(records[at]), "elsewhere")


def _faults(path: Path, *given: anchors.Anchor) -> str:
    return "; ".join(read_history(path, anchors=given).faults)


def test_a_ledger_that_went_on_fits_its_heads(tmp_path: Path) -> None:
    head = write_ledger(tmp_path / "l")
    early, late = _anchor(tmp_path / "l", at=4), _anchor(tmp_path / "l", at=9)
    with Ledger(tmp_path / "l", head) as ledger:
        ledger.append("step", step=10)
    history = read_history(tmp_path / "l", anchors=[late, early])
    assert (history.faults, history.repeats, history.step, history.num_steps) == ([], [], 10, 10)


def test_a_ledger_that_contradicts_its_heads(tmp_path: Path) -> None:
    path = tmp_path / "l"
    write_ledger(path)
    anchor = _anchor(path, at=9)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:7]))
    assert "cut or rolled back: it ends with record 6, elsewhere knows record 9" in _faults(path, anchor)
    path.unlink()
    assert "is gone or empty, though elsewhere knows 10 records" in _faults(path, anchor)
    # the whole chain made anew from an edited record on
    path.write_bytes(b"".join(whole[:5]))
    with Ledger(path, head_of(list(follow(path))[-1])) as ledger:
        for step in range(5, 10):
            ledger.append("step", step=step, loss=exact(0.1))
    assert "was written anew: record 9 is not the one of elsewhere" in _faults(path, anchor)
    path.unlink()
    with Ledger(path, EMPTY) as ledger:
        ledger.append("start", step=3)
    assert "another ledger than the one of elsewhere" in _faults(path, anchor)
    path.unlink()
    with Ledger(path, EMPTY) as ledger:  # with leave
        ledger.append("start", step=3, others=[anchor.ledger])
    assert _faults(path, anchor) == ""


def test_steps_that_skip_or_come_out_otherwise_are_told(tmp_path: Path) -> None:
    head = write_ledger(tmp_path / "l", 6)
    with Ledger(tmp_path / "l", head) as ledger:
        ledger.append("resume", step=3)
        ledger.append("step", step=4, loss=exact(1 / 4), batch="a" * 64)
        ledger.append("step", step=5, loss=exact(0.3), batch="b" * 64)
        ledger.append("step", step=7, loss=exact(0.3))
    history = read_history(tmp_path / "l")
    assert history.faults == ["record 9: step 7 follows step 5"]
    assert history.repeats == ["step 5 came out otherwise when it was taken again (record 8): batch, loss"]


def test_heads_are_written_and_read(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "far" / "heads.jsonl"
    run.mkdir()
    assert anchors.published(file, run=run) == [] and anchors.anchors_in([run]) == []
    anchors.write_anchor(run, ledger="i", head=Head(3, "h"))
    for number in (3, 7):
        anchors.publish(file, ledger="i", head=Head(number, "h"), run=run)
    anchors.publish(file, ledger="other", head=Head(1, "h"), run=tmp_path / "another")
    assert anchors.anchors_in([run]) == [anchors.Anchor("i", Head(3, "h"), str(run / "anchor.json"))]
    assert [item.head.number for item in anchors.published(file, run=run)] == [3, 7]
    (run / "anchor.json").write_text("{}")
    with pytest.raises(ValueError, match=r"anchor\.json is no head of a ledger"):
        anchors.anchors_in([run])
