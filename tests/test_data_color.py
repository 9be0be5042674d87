"""Colours as profiles and inks mean them, the first picture of several, and sizes at both ends."""

from __future__ import annotations

import io

import numpy
import pytest
from PIL import Image, ImageCms

from images import encoded, noise
from nextscale.data.sources import BadImageError
from nextscale.data.transforms import decode_image, resize_and_crop

COLOR = (200, 100, 50)


def _profile(name: str, temperature: float = 5000) -> bytes:
    made = ImageCms.createProfile(name, temperature) if name == "LAB" else ImageCms.createProfile(name)
    return ImageCms.ImageCmsProfile(made).tobytes()


def _xyz_profile(description: bytes, gamma: float, space: bytes = b"RGB ") -> bytes:
    """A small ICC profile (version 2) with one gamma and, for RGB, the primaries of sRGB turned round."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(fixed(value) for value in values)

    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    text = b"desc" + bytes(4) + (len(description) + 1).to_bytes(4, "big") + description + bytes(80)
    tags = {b"desc": text, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"RGB ":
        red, green, blue = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
        tags |= {b"rXYZ": xyz(*green), b"gXYZ": xyz(*red), b"bXYZ": xyz(*blue)}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    else:
        tags[b"kTRC"] = curve
    table, content, offset = len(tags).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + (offset + len(content)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        content += value
    header = bytearray(128)
    header[0:4] = (offset + len(content)).to_bytes(4, "big")
    header[8:12], header[12:16], header[16:20], header[20:24] = b"\2\x10\0\0", b"mntr", space, b"XYZ "
    header[36:40], header[68:80] = b"acsp", fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return bytes(header) + table + content


def _pixel(content: bytes) -> tuple[int, ...]:
    decoded = decode_image(content, "it")
    assert decoded.mode == "RGB"
    pixel = decoded.getpixel((1, 1))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_profile_is_followed(kind: str) -> None:
    """Red and green are changed over in this profile, and a higher gamma darkens."""
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image = Image.new("RGB", (16, 16), (250, 20, 20))
    turned = _xyz_profile(b"turned", 2.2)
    red, green, blue = _pixel(encoded(image, kind, icc_profile=turned, **options))
    assert green > 240 and red < 40 and blue < 40
    gray = encoded(Image.new("RGB", (8, 8), (128, 128, 128)), icc_profile=_xyz_profile(b"dark", 3.0))
    expected = 255 * (1.055 * (128 / 255) ** (3.0 / 2.4) - 0.055)
    assert _pixel(gray) == pytest.approx((expected,) * 3, abs=2)


def test_a_gray_profile_is_followed() -> None:
    profile = _xyz_profile(b"dark", 3.0, b"GRAY")
    expected = (255 * (1.055 * (128 / 255) ** (3.0 / 2.4) - 0.055),) * 3
    assert _pixel(encoded(Image.new("L", (8, 8), 128), icc_profile=profile)) == pytest.approx(expected, abs=2)
    assert _pixel(encoded(Image.new("LA", (8, 8), (128, 255)), icc_profile=profile)) == pytest.approx(
        expected, abs=2
    )


def test_transparency_and_profile_together() -> None:
    image = Image.new("RGBA", (4, 4), (250, 20, 20, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    content = encoded(image, icc_profile=_xyz_profile(b"turned", 2.2))
    red, green, blue = _pixel(content)
    assert green > 240 and red < 40 and blue < 40
    assert decode_image(content, "it").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all",
        _xyz_profile(b"cut", 3.0)[:200],
        _xyz_profile(b"for gray", 3.0, b"GRAY"),
        _profile("LAB"),
        _profile("sRGB"),
    ],
    ids=["broken", "cut short", "of gray", "lab", "srgb"],
)
def test_a_profile_that_does_not_fit_or_changes_nothing_leaves_the_pixels(profile: bytes) -> None:
    image = noise(3)
    decoded = decode_image(encoded(image, icc_profile=profile), "it")
    assert decoded.tobytes() == image.tobytes()


def test_inks_as_adobe_writes_them() -> None:
    """A JPEG with Adobe's mark holds 255 - ink; Pillow writes and reads them so."""
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in content
    assert _pixel(content) == pytest.approx((255, 0, 0), abs=6)
    assert _pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF")) == (0, 0, 0)


def test_one_transparent_value_of_sixteen_bits() -> None:
    image = Image.fromarray(numpy.array([[0, 25700, 65535]], dtype=numpy.uint16))
    decoded = decode_image(encoded(image, transparency=25700), "it")
    assert numpy.asarray(decoded)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_several(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.n_frames == 2  # type: ignore[attr-defined]
    assert _pixel(content) == (0, 0, 0)


def test_one_pixel_fills_any_size() -> None:
    image = decode_image(encoded(Image.new("RGB", (1, 1), COLOR)), "it")
    pixels = resize_and_crop(image, (32, 48), enlarge=1.125)
    assert pixels.shape == (32, 48, 3) and (pixels == numpy.array(COLOR)).all()


@pytest.mark.parametrize("pixels", [150, 1500])
def test_too_many_pixels_are_refused_and_it_says_so(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        BadImageError, match=rf"image cat cannot be read \(Image size \({pixels} pixels\) exceeds limit"
    ):
        decode_image(encoded(noise(0, (15, pixels // 15))), "cat")


def test_too_long_and_narrow_an_image_is_refused() -> None:
    """Enlarged to the width of the crop it would fill the memory."""
    with pytest.raises(ValueError, match="2 x 9000 pixels are too long and narrow for 256 x 256: crop it"):
        resize_and_crop(Image.new("RGB", (2, 9000)), (256, 256))
