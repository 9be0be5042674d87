"""Which pages `nextscale serve` has, and what it says when it cannot have one."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nextscale.cli import main
from serving_for_tests import WAIT, random_generator, started


@pytest.fixture
def model(tmp_path: Path) -> str:
    random_generator().save(tmp_path / "small")
    return str(tmp_path / "small")


def _without_gradio(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Returns whether the server that was then started has a page."""
    pages: list[bool] = []
    monkeypatch.setattr("nextscale.cli.serve.find_spec", lambda name: None)
    monkeypatch.setattr(
        "nextscale.serve.running.run_server", lambda app, server, say: pages.append(server.page)
    )
    return pages


def test_without_gradio_there_is_no_page_and_a_line_says_so(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = _without_gradio(monkeypatch)
    assert main(["serve", model]) == 0
    assert pages == [False]
    assert (
        capsys.readouterr().err == "nextscale: no page for browsers: pip install 'nextscale[demo]' for one\n"
    )


def test_a_page_that_was_asked_for_needs_gradio(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = _without_gradio(monkeypatch)
    assert main(["serve", model, "--page", "yes"]) == 2 and pages == []
    assert "gradio is missing: pip install 'nextscale[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(("wanted", "status"), [("no", 404), ("yes", 200)])
def test_with_and_without_a_page(model: str, wanted: str, status: int) -> None:
    with started([model, "--page", wanted]) as (_, address):
        for path in ("/", "/page/"):
            try:
                with urllib.request.urlopen(address + path, timeout=WAIT) as answer:
                    got = answer.status
            except urllib.error.HTTPError as error:
                got = error.code
            assert got == status
