"""Whatever a folder holds becomes upright RGB, or is refused by name; then resizing and cropping."""

from __future__ import annotations

import io

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from images import encoded, noise
from nextscale.data.transforms import decode_image, resize_and_crop

COLOR = (200, 100, 50)


def _decode(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    decoded = decode_image(encoded(image, kind, **options), "it")
    assert decoded.mode == "RGB"
    return decoded


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    decoded = _decode(Image.new("RGB", (6, 4), COLOR), kind, **options)
    assert decoded.size == (6, 4)
    assert decoded.getpixel((3, 2)) == pytest.approx(COLOR, abs=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grayscale(kind: str) -> None:
    assert _decode(Image.new("L", (4, 4), 77), kind).getpixel((0, 0)) == (77, 77, 77)


def test_one_bit() -> None:
    assert _decode(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk() -> None:
    decoded = _decode(Image.new("RGB", (8, 8), COLOR).convert("CMYK"), "JPEG", quality=95)
    assert decoded.getpixel((4, 4)) == pytest.approx(COLOR, abs=6)


def test_palette() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *COLOR])
    image.putpixel((1, 0), 1)
    decoded = _decode(image)
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), COLOR]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_shows_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *COLOR])
    image.putpixel((1, 0), 1)
    decoded = _decode(image, kind, transparency=0)
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), COLOR]


def test_transparency_shows_white() -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*COLOR, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    decoded = _decode(image)
    assert [decoded.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), COLOR, (127, 127, 127)]


def test_grayscale_with_transparency() -> None:
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (9, 255))
    decoded = _decode(image)
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_range(kind: str) -> None:
    values = numpy.array([[0, 128, 129, 257 * 100, 65535]], dtype=numpy.uint16)
    decoded = numpy.asarray(_decode(Image.fromarray(values), kind))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 100, 255]


@pytest.mark.parametrize("dtype", [numpy.int32, numpy.float32])
def test_values_without_a_known_range_are_refused(dtype: type) -> None:
    image = Image.fromarray(numpy.full((4, 4), 100_000, dtype=dtype))
    with pytest.raises(ValueError, match="image cat cannot be read"):
        decode_image(encoded(image, "TIFF"), "cat")


def _with_orientation(value: int) -> bytes:
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, "JPEG", quality=95, exif=exif)


def test_an_image_that_a_camera_turned_is_made_upright() -> None:
    decoded = decode_image(_with_orientation(6), "it")
    assert decoded.size == (8, 16)
    assert decoded.getpixel((4, 3))[0] > 240 and decoded.getpixel((4, 12))[0] < 15  # white above


@pytest.mark.parametrize("value", [0, 1, 9])
def test_an_orientation_that_means_nothing_is_ignored(value: int) -> None:
    decoded = decode_image(_with_orientation(value), "it")
    assert decoded.size == (16, 8)
    assert decoded.getpixel((3, 4))[0] > 240 and decoded.getpixel((12, 4))[0] < 15


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_file_is_refused_by_name(kind: str) -> None:
    content = encoded(noise(0, (64, 64)), kind)
    with pytest.raises(ValueError, match=r"image dir/cat\.png cannot be read \(.*\): repair or remove it"):
        decode_image(content[: len(content) * 6 // 10], "dir/cat.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>"], ids=["empty", "text", "html"])
def test_what_is_no_image_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(ValueError, match="image cat cannot be read"):
        decode_image(content, "cat")


def test_an_image_of_absurd_size_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="image cat cannot be read"):
        decode_image(encoded(noise(0, (15, 10))), "cat")


def _readable_or_named(content: bytes) -> None:
    try:
        assert decode_image(content, "cat").mode == "RGB"
    except ValueError as error:
        assert "image cat cannot be read" in str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says so when it skips broken EXIF data
@given(data=st.data())
def test_damage_gives_an_image_or_a_named_error(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    content = bytearray(encoded(noise(1, (9, 7)), kind, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _readable_or_named(bytes(content))


def test_exif_data_that_pillow_cannot_write_again() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "twenty characters...."
    raw = exif.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")  # the width of the image, as text
    _readable_or_named(encoded(noise(0), "JPEG", exif=raw))


def test_crop_is_the_centre_unless_told() -> None:
    ramp = Image.fromarray(numpy.arange(30, dtype=numpy.uint8)[None, :, None].repeat(10, 0).repeat(3, 2))
    assert resize_and_crop(ramp, (10, 10))[0, :, 0].tolist() == list(range(10, 20))
    assert resize_and_crop(ramp, (10, 10), place=(0.0, 0.0))[0, :, 0].tolist() == list(range(10))
    assert resize_and_crop(ramp, (10, 10), place=(1.0, 1.0))[0, :, 0].tolist() == list(range(20, 30))


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = noise(3, (8, 6))
    assert numpy.array_equal(resize_and_crop(image, (6, 8)), numpy.asarray(image))


def test_enlarge_cuts_a_smaller_part_out() -> None:
    ramp = Image.fromarray(
        numpy.linspace(0, 255, 32).astype(numpy.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    )
    whole, part = resize_and_crop(ramp, (32, 32)), resize_and_crop(ramp, (32, 32), enlarge=1.25)
    assert numpy.ptp(whole) > numpy.ptp(part) > 0.75 * numpy.ptp(whole)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.floats(1, 2),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_image_gives_the_wanted_size(
    given_size: tuple[int, int], wanted: tuple[int, int], enlarge: float, place: tuple[float, float]
) -> None:
    pixels = resize_and_crop(Image.new("RGB", given_size, COLOR), wanted, enlarge=enlarge, place=place)
    assert pixels.shape == (*wanted, 3) and pixels.dtype == numpy.uint8
    assert (pixels == numpy.array(COLOR)).all()  # black would come from beyond the edge


def test_decoding_does_not_depend_on_the_name() -> None:
    content = encoded(noise(5))
    first, second = decode_image(content, "a.jpg"), decode_image(content, "b.png")
    assert first.tobytes() == second.tobytes() == Image.open(io.BytesIO(content)).tobytes()
