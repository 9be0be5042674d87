"""Whatever is sent: no answer of 500 or above, no hang, no growth."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy
import pytest
from PIL import Image

from serving_for_tests import WAIT, form, mask_with_hole, png, running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_the_document_is_true_and_nothing_breaks() -> None:
    with running(max_pixels=100_000) as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS,
            "--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--request-timeout", "30",
            "--no-color",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert result.returncode == 0, result.stdout[-5000:]
        assert "10 selected / 10 total" in result.stdout and server.engine.state().alive


def seeds() -> list[bytes]:
    """Pictures of many kinds, some of them odd from the start."""
    noise = numpy.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=numpy.uint8)
    rgba = Image.fromarray(noise)
    rgb = rgba.convert("RGB")
    pictures: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "PNG", {}), (mask_with_hole(), "PNG", {}), (rgb, "JPEG", {}), (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}), (rgb.convert("1"), "PNG", {}), (rgb, "BMP", {}),
        (Image.fromarray(noise[..., 0].astype(numpy.uint16) * 257), "PNG", {}), (rgb, "TIFF", {}),
        (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [rgb.convert("P").rotate(90)]}),
        (rgba, "WEBP", {"save_all": True, "append_images": [rgba.rotate(90)]}), (rgb, "ICO", {}),
        (rgb.resize((700, 1)), "PNG", {}), (rgb.resize((1, 1)), "PNG", {}),
    ]  # fmt: skip
    files = []
    for image, kind, options in pictures:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return [*files, b"", b"text", png(rgb)[1] * 2, huge_header()]


def huge_header() -> bytes:
    """A PNG file of a few bytes that promises 4 GiB of pixels."""
    whole = png(Image.new("L", (1, 1)))[1]
    content = b"IHDR" + (65535).to_bytes(4, "big") * 2 + whole[24:29]
    return whole[:12] + content + zlib.crc32(content).to_bytes(4, "big") + whole[33:]


def mutated(content: bytes, numbers: numpy.random.Generator) -> bytes:
    """Cut, flipped, doubled or filled, or as it is."""
    if not content:
        return content
    how, place = numbers.integers(5), int(numbers.integers(len(content)))
    if how == 0:
        return content[:place]
    if how == 1:
        flipped = bytearray(content)
        for spot in numbers.integers(len(content), size=1 + place % 4):
            flipped[spot] ^= 1 << int(numbers.integers(8))
        return bytes(flipped)
    if how == 2:
        return content[:place] + content[max(0, place - 9) :]
    if how == 3:
        return content[:place] + bytes(numbers.integers(256, size=16, dtype=numpy.uint8)) + content[place:]
    return content


def resident_mebibytes() -> float:
    """Of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_five_hundred_strange_uploads() -> None:
    numbers, files = numpy.random.default_rng(1), seeds()
    found: Counter[int] = Counter()
    memory = []
    with running(max_pixels=100_000) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT)
        for number in range(500):
            choice = numbers.integers(len(files), size=2)
            image, mask = (mutated(files[place], numbers) for place in choice)
            parts = {"image": ("a.png", image, "image/png")}
            if number % 3:
                parts["mask"] = ("b.png", mask, "image/png")
            body, kind = form({"prompt": "frog", "seed": str(number)}, parts)
            connection.request("POST", "/v1/images/edits", body, {"Content-Type": kind})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            found[answer.status] += 1
            assert answer.status == 200 or content["error"]["message"], content
            assert "object at 0x" not in json.dumps(content)
            if number % 100 == 99:
                memory.append(resident_mebibytes())
        connection.close()
        assert server.engine.state().alive
    assert set(found) == {200, 400} and min(found.values()) > 30
    assert memory[-1] < memory[1] + 20
