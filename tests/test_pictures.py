"""Picture files as people have them: long texts beside the pixels, damage of all kinds, and pictures of many pixels."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from importance.samples import EncodedImage
from tests.support.pictures import encoded
from transform.molmoe.pictures import STRIP, ImageError, open_image
from transform.molmoe.png_texts import MAX_KEPT, without_texts

LONG = "x" * 1_100_000  # more than pillow unpacks of one text
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(*chunks: bytes, behind: bool = False) -> bytes:
    """A PNG of PIXELS with chunks in front of its pixels or behind them."""
    png = encoded(PIXELS)
    at = png.index(b"IEND" if behind else b"IDAT") - 4
    return png[:at] + b"".join(chunks) + png[at:]


def compressed(kind: bytes, keyword: str, text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    middle = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    return chunk(kind, keyword.encode() + middle + zlib.compress(raw, 1))


CHUNKS = {
    "zTXt": [compressed(b"zTXt", "workflow", LONG)],
    "iTXt": [compressed(b"iTXt", "workflow", LONG)],
    "XMP": [compressed(b"iTXt", "XML:com.adobe.xmp", LONG)],
    "profile": [chunk(b"iCCP", b"icc\0\0" + zlib.compress(LONG.encode()))],
    "raw profile": [compressed(b"zTXt", "Raw profile type exif", LONG)],
    "texts above 64 MB together": [chunk(b"tEXt", b"a\0" + bytes([97]) * 23_000_000)] * 3,
    "all of them": [compressed(kind, "workflow", LONG) for kind in (b"zTXt", b"iTXt")] * 2,
    "a text that is no zlib": [chunk(b"zTXt", b"XML:com.adobe.xmp\0\0????"), compressed(b"zTXt", "w", LONG)],
}


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_texts_beside_the_pixels_cost_nothing(chunks: list[bytes], behind: bool, tmp_path: Path) -> None:
    png = with_chunks(*chunks, behind=behind)
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), PIXELS)
    np.testing.assert_array_equal(EncodedImage(png).open(), PIXELS)


@pytest.mark.parametrize("packed", [False, True])
def test_how_a_picture_is_turned_is_not_lost_with_its_texts(packed: bool) -> None:
    """XMP says it as EXIF does, here in front of two megabytes of history."""
    xmp = f'<rdf:Description tiff:Orientation="6">{"é" * 1_000_000}'
    kind, keyword = b"iTXt", "XML:com.adobe.xmp"
    own = compressed(kind, keyword, xmp) if packed else chunk(kind, keyword.encode() + b"\0" * 5 + xmp.encode())
    turned = np.rot90(PIXELS, -1)
    np.testing.assert_array_equal(EncodedImage(with_chunks(own, *CHUNKS["zTXt"])).open(), turned)
    exif = Image.Exif()
    exif[0x0112] = 6
    digits = exif.tobytes().hex()
    profile = compressed(b"zTXt", "Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{digits}\n")
    np.testing.assert_array_equal(EncodedImage(with_chunks(profile, *CHUNKS["zTXt"])).open(), turned)


def test_little_is_unpacked() -> None:
    bombs = [compressed(b"zTXt", "bomb", bytes(60 << 20)), compressed(b"iTXt", "XML:com.adobe.xmp", bytes(60 << 20))]
    png = with_chunks(*bombs)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(EncodedImage(png).open(), PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_KEPT
    finally:
        tracemalloc.stop()
    assert without_texts(b"no PNG") is None


def test_many_pixels_are_held_once() -> None:
    """Beside the result and pillow's own picture, there is a strip of it."""
    png = encoded(Image.new("1", (4000, 4000), 1))
    tracemalloc.start()
    try:
        pixels = EncodedImage(png).open()
        assert tracemalloc.get_traced_memory()[1] < 1.3 * pixels.nbytes
    finally:
        tracemalloc.stop()
    assert pixels.min() == 255


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_strips_are_one_picture(mode: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2 * STRIP + 7, 5, 3), np.uint8)
    grey, image = Image.fromarray(noise[:, :, 0]), Image.fromarray(noise)
    if mode == "PA":
        image = Image.merge("LA", (grey, grey)).convert("PA")
    elif mode in ("La", "RGBa"):
        image = (Image.merge("LA", (grey, grey)) if mode == "La" else image.convert("RGBA")).convert(mode)
    elif mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB")) or image
    else:
        image = image.convert(mode)
    through = {"La": "LA", "P": "RGBA", "PA": "RGBA", "RGBa": "RGBA"}.get(mode, mode)
    np.testing.assert_array_equal(open_image(image), np.asarray(image.convert(through).convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_strips_of_sixteen_bits(mode: str) -> None:
    values = np.random.default_rng(2).integers(0, 65536, (STRIP + 3, 4))
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (4, STRIP + 3), values.astype(kind).tobytes())
    np.testing.assert_array_equal(open_image(image)[:, :, 1], (values + 128) // 257)


KINDS = ["PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "PPM", "TIFF", "BMP", "GIF", "ICO", "TGA", "PCX", "DDS", "SGI"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_image_error(kind: str) -> None:
    """Cut anywhere, and with bytes changed anywhere but most in front: pixels, or one sentence."""
    dice = np.random.default_rng(3)
    whole = encoded(PIXELS[:16, :16], kind)
    damaged = [whole[:n] for n in {*range(0, min(60, len(whole)), 2), *dice.integers(0, len(whole), 20).tolist()}]
    for _ in range(120):
        changed = bytearray(whole)
        for _ in range(int(dice.integers(1, 4))):
            changed[int(len(whole) * dice.random() ** 2)] = int(dice.integers(256))
        damaged.append(bytes(changed))
    for data in damaged:
        try:
            assert EncodedImage(data).open().ndim == 3
        except ImageError as error:
            message = str(error)
            assert len(message) < 500
            assert "Check the path" not in message


@pytest.mark.parametrize("kind", KINDS[:-3])
def test_a_cut_file_is_not_said_to_be_elsewhere(kind: str, tmp_path: Path) -> None:
    whole = encoded(PIXELS, kind)
    for part in (0.3, 0.6, 0.9):
        (tmp_path / "cut").write_bytes(whole[: int(len(whole) * part)])
        try:
            open_image(tmp_path / "cut")
        except ImageError as error:
            assert "Check the path" not in str(error)
            assert "intact" in str(error) or "is none" in str(error)


def test_a_cut_header() -> None:
    """Of a PNG's first chunk: a ValueError of pillow's."""
    for length in (0, 5, 12):
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", encoded(PIXELS)[16 : 16 + length])
        with pytest.raises(ImageError, match="must be"):
            EncodedImage(png).open()


def test_pillow_still_refuses_long_texts() -> None:
    """Else the tests above show nothing."""
    assert len(LONG) > PngImagePlugin.MAX_TEXT_CHUNK
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(with_chunks(*CHUNKS["zTXt"])))
