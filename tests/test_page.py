"""The page, in the browser that people have."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from nextscale import Generator
from nextscale.generate.provenance import read_png
from nextscale.serve.keys import new_key
from page_for_tests import SOON, choose_class, edit_the_last, files, fixed_seed, generate, paint, pictures
from serving_for_tests import Gate, Running, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DIGEST = "5a" * 32  #: of the model, as its pictures say


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def server(gate: Gate) -> Iterator[Running]:
    with running(
        generator=Generator.load("cifar10-tiny"), gate=gate, page=True, model_digest=DIGEST
    ) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """A fresh page, which asks nobody else."""
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        opened = context.new_page()
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(server.url)
        expect(opened.locator("#generate")).to_be_visible(timeout=SOON)
        yield opened
        own = (server.url, "data:", "blob:")
        assert len(asked) > 20 and [url for url in asked if not url.startswith(own)] == []


def test_a_class_is_searched_and_its_pictures_come_into_focus(
    page: Page, gate: Gate, server: Running
) -> None:
    choose_class(page, "fro", "frog")
    fixed_seed(page, 5)
    gate.shut()
    page.click("#generate")
    assert gate.reached.wait(SOON / 1000)
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("Scale", timeout=SOON)
    expect(page.locator("#status")).to_contain_text("Done in", timeout=SOON)
    made = pictures(page, "#pictures")
    expected = Generator.load("cifar10-tiny")(["frog"] * 4, seeds=range(5, 9))
    assert len(made) == 4 and numpy.array_equal(numpy.stack(made), expected.images)
    expect(page.locator("#pictures")).to_contain_text("frog · 5")
    (record, *_) = [read_png(file)[1] for file in files(page, "#pictures")]
    assert (record.class_name, record.seed, record.row, record.batch) == ("frog", 5, 0, 4)
    assert record.model_digest == DIGEST


def test_something_new_every_time(page: Page) -> None:
    one, two = generate(page), generate(page)
    assert not numpy.array_equal(one[0], two[0])
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#history img")).to_have_count(8, timeout=SOON)
    oldest = page.locator("#history button").filter(has=page.locator("img")).last
    oldest.click()
    expect(page.locator("#taken")).to_contain_text("Taken: airplane", timeout=SOON)
    (alone,) = files(page, "#taken-picture")
    assert numpy.array_equal(read_png(alone)[0], one[-1]), "the same picture, to be downloaded by itself"
    page.get_by_role("tab", name="Generate").click()
    assert numpy.array_equal(generate(page)[0], one[-1]), "the settings of the oldest, the last of its batch"


def test_paint_and_fill(page: Page) -> None:
    given = generate(page)[0]
    edit_the_last(page)
    page.wait_for_timeout(2000)  # the editor lays the picture out
    for _ in range(5):  # a stroke is lost while the editor still draws
        paint(page)
        page.click("#edit")
        expect(page.locator("#edit-status")).to_contain_text(re.compile("Done in|Error"), timeout=SOON)
        if "Done in" in page.locator("#edit-status").inner_text():
            break
    expect(page.locator("#edit-status")).to_contain_text("Done in")
    before, after = pictures(page, "#edited")
    assert numpy.array_equal(before, given)
    changed = (before != after).any(axis=2)
    assert changed.any(), "what was painted is new"
    assert not changed[:4].any() and not changed[-4:].any(), "what was not painted stays, to the bit"


def test_a_box_of_an_uploaded_picture(page: Page, tmp_path: Path) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(tmp_path / "mine.png")
    page.get_by_role("tab", name="Edit").click()
    page.wait_for_timeout(2000)  # as above
    page.locator("#editor input[type=file]").first.set_input_files(tmp_path / "mine.png")
    expect(page.locator("#edit-status")).to_contain_text("Paint over", timeout=SOON)
    page.get_by_label("a box").check()
    page.click("#edit")
    expect(page.locator("#edit-status")).to_contain_text("Done in", timeout=SOON)
    before, after = pictures(page, "#edited")
    changed = (before != after).any(axis=2)
    assert changed[8:24, 8:24].mean() > 0.5 and changed.sum() == changed[8:24, 8:24].sum()
    page.get_by_role("tab", name="History").click()
    page.locator("#history button").filter(has=page.locator("img")).last.click()
    expect(page.locator("#taken")).to_contain_text("inpaint: an edit", timeout=SOON)
    (edited,) = files(page, "#taken-picture")
    record = read_png(edited)[1]
    assert record.edit is not None and record.edit.task == "inpaint"


def test_cancel(page: Page, gate: Gate, server: Running) -> None:
    gate.shut()
    page.click("#generate")
    assert gate.reached.wait(SOON / 1000)
    page.click("#cancel-generate")
    expect(page.locator("#status")).to_contain_text("Cancelled.", timeout=SOON)
    page.wait_for_timeout(500)
    assert server.engine.state().running == 0, "nobody waits for it any more"
    gate.open.set()
    assert len(generate(page)) == 4


def test_nothing_to_cancel(page: Page) -> None:
    before = page.locator("#status").inner_text()
    page.click("#cancel-generate")
    page.wait_for_timeout(1000)
    assert page.locator("#status").inner_text() == before
    generate(page)
    page.click("#cancel-generate")
    page.wait_for_timeout(1000)
    expect(page.locator("#status")).to_contain_text("Done in")


def test_two_tabs_at_once_both_reach_the_open_history(page: Page, gate: Gate) -> None:
    generate(page)
    edit_the_last(page)
    page.get_by_role("radio", name="Keep the coarse scales").check()
    gate.shut()
    page.click("#edit")
    assert gate.reached.wait(SOON / 1000)
    page.get_by_role("tab", name="Generate").click()
    page.click("#generate")
    page.get_by_role("tab", name="History").click()
    gate.open.set()
    expect(page.locator("#history img")).to_have_count(4 + 1 + 4, timeout=SOON)


def test_an_edit_takes_the_settings_of_its_tab(page: Page, gate: Gate) -> None:
    generate(page)
    edit_the_last(page)
    page.get_by_role("radio", name="Keep the coarse scales").check()
    page.get_by_role("button", name="More settings").last.click()
    page.get_by_label("number input for Guidance").last.fill("2.5")
    page.get_by_label("number input for Guidance").last.press("Tab")
    page.click("#edit")
    expect(page.locator("#edit-status")).to_contain_text("Done in", timeout=SOON)
    record = read_png(files(page, "#edited")[1])[1]
    assert record.edit is not None and (record.edit.task, record.sampling.guidance) == ("variation", 2.5)


def test_a_huge_picture_is_refused(browser: Browser, tmp_path: Path) -> None:
    Image.new("RGB", (200, 150), "red").save(tmp_path / "huge.png")
    with browser.new_context() as context, running(page=True, max_pixels=100 * 100) as server:
        page = context.new_page()
        page.goto(server.url)
        page.get_by_role("tab", name="Edit").click()
        page.wait_for_timeout(2000)  # as above
        page.locator("#editor input[type=file]").first.set_input_files(tmp_path / "huge.png")
        text = "what was uploaded has 200 x 150 pixels: at most 10,000 are taken; shrink it"
        expect(page.get_by_text(text)).to_be_visible(timeout=SOON)
        page.click("#edit")
        expect(page.get_by_text(re.compile("no picture yet|200 x 150")).last).to_be_visible(timeout=SOON)


def test_what_is_wrong_is_said(page: Page) -> None:
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit")
    expect(page.get_by_text("no picture yet: upload one")).to_be_visible(timeout=SOON)
    page.get_by_role("tab", name="Generate").click()
    fixed_seed(page, -3)
    page.click("#generate")
    expect(page.get_by_text("seed -3: expected a whole number from 0")).to_be_visible(timeout=SOON)
    page.get_by_label("Seed").first.fill("")
    page.click("#generate")
    expect(page.get_by_text("Seed is empty: give a number")).to_be_visible(timeout=SOON)


def test_by_keyboard_on_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#generate").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Done in", timeout=SOON)
    page.get_by_role("tab", name="Edit").click()
    expect(page.locator("#edit")).to_be_visible(timeout=SOON)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_with_keys_the_page_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    with running(keys=tmp_path / "keys", page=True) as server, browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        for text, shown in (("wrong", False), (key, True)):
            page.get_by_label("username").fill("alice")
            page.get_by_label("password").fill(text)
            page.get_by_role("button", name="Login").click()
            if shown:
                expect(page.locator("#generate")).to_be_visible(timeout=SOON)
            else:
                expect(page.get_by_text("Incorrect Credentials")).to_be_visible(timeout=SOON)


def test_an_open_page_does_not_hold_up_the_end(browser: Browser) -> None:
    with browser.new_context() as context, running(page=True) as server:
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#generate")).to_be_visible(timeout=SOON)
        page.wait_for_timeout(2000)  # its heartbeat is open by now
        server.server.should_exit = True
        start = time.monotonic()
        while server.server.started and server.server.server_state.connections:
            assert time.monotonic() - start < 10, "the grace of 30 s and 5 more"
            time.sleep(0.05)


def test_in_the_dark(browser: Browser, server: Running) -> None:
    """Words must stand out from what is behind them."""
    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#status")).to_be_visible(timeout=SOON)
        words, behind = page.evaluate(
            """() => [getComputedStyle(document.querySelector("#status p")).color,
                      getComputedStyle(document.body).backgroundColor]"""
        )
        light, dark = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) for colour in (words, behind))
        assert dark < 150 and light > 450, (words, behind)
