"""The page, in the browser that people have."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from nextscale import Generator
from nextscale.serve.keys import new_key
from serving_for_tests import Gate, Running, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SOON = 30_000  #: milliseconds, on a busy machine


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def server(gate: Gate) -> Iterator[Running]:
    with running(generator=Generator.load("cifar10-tiny"), gate=gate, page=True) as started:
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


def pictures(page: Page, gallery: str) -> list[numpy.ndarray]:
    """Those of a gallery, once they change no more, as files: uint8 (H, W, 3)."""
    shown, addresses = page.locator(f"{gallery} img"), None
    while (now := shown.evaluate_all("found => found.map(one => one.src)")) != addresses:
        addresses = now
        page.wait_for_timeout(1000)
    found = []
    for address in addresses:
        with Image.open(io.BytesIO(page.request.get(address).body())) as image:
            assert image.format == "PNG"
            found.append(numpy.asarray(image.convert("RGB")))
    return found


def choose_class(page: Page, typed: str, name: str) -> None:
    field = page.get_by_label("Class").first
    field.fill(typed)
    page.get_by_role("option", name=name).click()
    expect(field).to_have_value(name)


def generate(page: Page) -> list[numpy.ndarray]:
    """Pictures of other seeds than those before."""
    before = page.locator("#status").inner_text()
    page.click("#generate")
    expect(page.locator("#status")).not_to_have_text(before, timeout=SOON, use_inner_text=True)
    expect(page.locator("#status")).to_contain_text("Done in", timeout=SOON)
    return pictures(page, "#pictures")


def fixed_seed(page: Page, seed: int) -> None:
    page.get_by_label("Something new every time").first.uncheck()
    page.get_by_label("Seed").first.fill(str(seed))


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


def test_something_new_every_time(page: Page) -> None:
    one, two = generate(page), generate(page)
    assert not numpy.array_equal(one[0], two[0])
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#history img")).to_have_count(8, timeout=SOON)
    oldest = page.locator("#history button").filter(has=page.locator("img")).last
    oldest.click()
    expect(page.locator("#taken")).to_contain_text("Taken: airplane", timeout=SOON)
    page.get_by_role("tab", name="Generate").click()
    assert numpy.array_equal(generate(page)[0], one[-1]), "the settings of the oldest, the last of its batch"


def paint(page: Page) -> None:
    """A stroke across the middle, as a hand makes it."""
    box = page.locator("#editor canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 80, y)
    page.wait_for_timeout(500)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(x - 60 + 10 * step, y + step % 2 * 20, steps=3)
        page.wait_for_timeout(100)
    page.mouse.up()
    page.wait_for_timeout(1500)


def test_paint_and_fill(page: Page) -> None:
    given = generate(page)[0]
    page.get_by_role("tab", name="Edit").click()
    page.click("#take-last")
    expect(page.locator("#edit-status")).to_contain_text("Paint over", timeout=SOON)
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


def test_what_is_wrong_is_said(page: Page) -> None:
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit")
    expect(page.get_by_text("no picture yet: upload one")).to_be_visible(timeout=SOON)
    page.get_by_role("tab", name="Generate").click()
    fixed_seed(page, -3)
    page.click("#generate")
    expect(page.get_by_text("seed -3: expected a whole number from 0")).to_be_visible(timeout=SOON)


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
