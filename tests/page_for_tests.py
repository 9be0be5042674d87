"""What a hand does on the page."""

from __future__ import annotations

import io

import numpy
from PIL import Image
from playwright.sync_api import Page, expect

SOON = 30_000  #: milliseconds, on a busy machine


def pictures(page: Page, gallery: str) -> list[numpy.ndarray]:
    """Those of a gallery, once they change no more: uint8 (H, W, 3)."""
    found = []
    for file in files(page, gallery):
        with Image.open(file) as image:
            assert image.format == "PNG"
            found.append(numpy.asarray(image.convert("RGB")))
    return found


def files(page: Page, gallery: str) -> list[io.BytesIO]:
    """As above, as a browser saves them."""
    shown, addresses = page.locator(f"{gallery} img"), None
    while (now := shown.evaluate_all("found => found.map(one => one.src)")) != addresses:
        addresses = now
        page.wait_for_timeout(1000)
    return [io.BytesIO(page.request.get(address).body()) for address in addresses]


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


def edit_the_last(page: Page) -> None:
    """Go to the tab where the newest picture can be painted on."""
    page.get_by_role("tab", name="Edit").click()
    page.click("#take-last")
    expect(page.locator("#edit-status")).to_contain_text("Paint over", timeout=SOON)
