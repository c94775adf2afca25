"""trainer.images: every file gives right pixels or one of six plain errors, whatever is in it."""

import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import pictures
from trainer import images
from trainer.images import ImageError, decode

WHITE = (255, 255, 255)
CODES = {"empty", "not_an_image", "truncated", "corrupt", "too_many_pixels", "unsupported"}


def points(pixels):
    """Look at the middle of each quadrant."""
    height, width = pixels.shape[:2]
    return [tuple(map(int, pixels[height * y // 4, width * x // 4])) for y in (1, 3) for x in (1, 3)]


def assert_quadrants(pixels, expected=pictures.COLOURS, tolerance=6):
    found = points(pixels)
    assert np.abs(np.subtract(found, expected)).max() <= tolerance, f"{found} is not {expected}"


def code_of(source, **options):
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    assert caught.value.code in CODES
    return caught.value.code


def in_mode(mode):
    return pictures.quadrants(mode=mode)


def as_rgb(image):
    return points(np.asarray(image.convert("RGB")))


# Right pixels


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("kind", images.FORMATS)
def test_every_format_gives_its_colours(kind, size, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(pictures.picture(kind))
    found = decode(path, size=size)
    assert (found.width, found.height, found.format) == (64, 48, kind)
    assert found.pixels.shape == ((size, size, 3) if size else (48, 64, 3))
    assert found.pixels.dtype == np.uint8
    assert found.pixels.flags.c_contiguous
    assert_quadrants(found.pixels)


MODES = [
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("PNG", "1", {}),
    ("PNG", "L", {}),
    ("PNG", "P", {}),
    ("PNG", "P", {"bits": 4}),
    ("PNG", "I;16", {}),
    ("GIF", "L", {}),
    ("GIF", "P", {}),
    ("GIF", "P", {"interlace": 1}),
    ("BMP", "1", {}),
    ("BMP", "L", {}),
    ("BMP", "P", {}),
    ("WEBP", "L", {}),
    ("WEBP", "RGB", {"lossless": False, "quality": 95}),
    ("TIFF", "1", {}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "L", {}),
    ("TIFF", "P", {}),
    ("TIFF", "CMYK", {}),
    ("TIFF", "YCbCr", {}),
    ("TIFF", "I;16", {}),
    ("TIFF", "I;16", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", {"compression": "packbits"}),
    ("TIFF", "RGB", {"compression": "jpeg", "quality": 95}),
    ("TIFF", "RGB", {"big_tiff": True}),
    ("AVIF", "L", {}),
    ("HEIF", "L", {}),
]


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize(("kind", "mode", "options"), MODES, ids=str)
def test_every_mode_gives_its_colours(kind, mode, options, size):
    image = in_mode(mode)
    grey = mode.startswith("I;16")
    expected = as_rgb(in_mode("L") if grey else image)
    assert_quadrants(decode(pictures.encoded(image, kind, **options), size=size).pixels, expected, tolerance=8)


def test_lab_is_converted_to_srgb():
    lab = pictures.encoded(in_mode("LAB"), "TIFF")
    assert_quadrants(decode(lab).pixels, tolerance=12)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_integers_and_floats_are_stretched_from_least_to_largest(mode):
    pixels = decode(pictures.encoded(in_mode(mode), "TIFF")).pixels
    grey = np.asarray(in_mode("L"), dtype=float)
    stretched = (grey - grey.min()) * 255 / (grey.max() - grey.min())
    assert np.abs(pixels - stretched[..., None]).max() <= 1


@pytest.mark.parametrize("values", [np.nan, np.inf, 7.0, [np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0]])
def test_strange_floats_give_a_picture(values):
    image = Image.fromarray(np.resize(np.array(values, dtype=np.float32), (6, 6)))
    assert decode(pictures.encoded(image, "TIFF")).pixels.shape == (6, 6, 3)


def test_twelve_bits_are_not_black():
    entries = [(256, 3, [2]), (257, 3, [1]), (258, 3, [12]), (259, 3, [1]), (262, 3, [1]), (277, 3, [1]), (278, 3, [1])]
    start = 8 + 2 + 9 * 12 + 4
    data = pictures.tiff([*entries[:5], (273, 4, [start]), *entries[5:], (279, 4, [3])], b"\xff\xf8\x00")
    assert decode(data).pixels[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "LA"), ("PNG", "RGBA"), ("WEBP", "RGBA"), ("TIFF", "RGBA"), ("TIFF", "LA"),
                       ("AVIF", "RGBA"), ("HEIF", "RGBA")]
)  # fmt: skip
def test_transparency_lies_on_white(kind, mode, size):
    image = pictures.faded(in_mode("L" if mode == "LA" else "RGB"))
    _, *rest = as_rgb(image)
    assert_quadrants(decode(pictures.encoded(image, kind), size=size).pixels, [WHITE, *rest], tolerance=8)


def test_half_transparency_is_half_white():
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    for size in (None, 4):
        assert np.abs(np.subtract(decode(pictures.encoded(half, "PNG"), size=size).pixels, (255, 127, 127))).max() <= 1


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_lies_on_white(kind, size):
    image = in_mode("P")
    _, *rest = as_rgb(image)
    data = pictures.encoded(image, kind, transparency=image.getpixel((16, 12)))
    assert_quadrants(decode(data, size=size).pixels, [WHITE, *rest])


def test_palette_transparency_in_bytes_lies_on_white():
    image = in_mode("P")
    alphas = bytearray(b"\xff" * 16)
    alphas[image.getpixel((16, 12))] = 0
    _, *rest = as_rgb(image)
    assert_quadrants(decode(pictures.encoded(image, "PNG", transparency=bytes(alphas))).pixels, [WHITE, *rest])


@pytest.mark.parametrize(("mode", "key"), [("RGB", pictures.COLOURS[0]), ("L", 94), ("1", 0)])
def test_a_colour_named_transparent_lies_on_white(mode, key):
    image = in_mode(mode)
    if mode != "RGB":
        key = image.getpixel((16, 12))
    found = points(decode(pictures.encoded(image, "PNG", transparency=key)).pixels)
    assert found[0] == WHITE
    assert found[3] == as_rgb(image)[3]


@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_turned_picture_comes_out_upright(kind, orientation, size):
    found = decode(pictures.oriented(kind, orientation), size=size)
    assert (found.width, found.height) == (64, 48)
    assert found.pixels.shape[:2] == ((48, 48) if size else (48, 64))
    assert_quadrants(found.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_comes_out_upright_when_it_is_decoded_at_a_smaller_scale(orientation):
    found = decode(pictures.oriented("JPEG", orientation, 640, 480), size=32)
    assert (found.width, found.height) == (640, 480)
    assert_quadrants(found.pixels)


def test_orientation_after_the_pixels_of_a_png_counts():
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    rows = b"".join(b"\0" + bytes(row) for row in np.asarray(pictures.quadrants(48, 64)))
    data = pictures.png(48, 64, after=pictures.png_chunk(b"eXIf", exif.tobytes()[6:]), pixels=zlib.compress(rows))
    assert (decode(data).width, decode(data).height) == (64, 48)


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = value
    assert_quadrants(decode(pictures.picture("JPEG", exif=exif)).pixels)


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"garbage" * 20, b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40]
)
def test_damaged_exif_does_not_cost_the_picture(exif):
    assert_quadrants(decode(pictures.picture("JPEG", exif=b"Exif\0\0" + exif)).pixels)
    assert_quadrants(decode(pictures.picture("WEBP", exif=exif)).pixels)
    rows = b"".join(b"\0" + bytes(row) for row in np.asarray(pictures.quadrants()))
    assert_quadrants(decode(pictures.png(64, 48, pictures.png_chunk(b"eXIf", exif), pixels=zlib.compress(rows))).pixels)


@pytest.mark.parametrize("shape", [(1600, 1200), (1203, 901), (500, 3000), (225, 224), (224, 224)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_scaled_jpeg_is_the_full_jpeg_made_small(mode, shape):
    data = pictures.encoded(pictures.noise(*shape, block=40).convert(mode), "JPEG")
    full = Image.fromarray(decode(data).pixels).resize((224, 224), Image.Resampling.BILINEAR)
    difference = np.abs(decode(data, size=224).pixels.astype(int) - np.asarray(full))
    assert difference.mean() < 2
    assert np.percentile(difference, 99) < 24


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_small_picture_is_the_full_picture_made_small(kind):
    data = pictures.encoded(pictures.noise(701, 499, block=9), kind)
    full = Image.fromarray(decode(data).pixels).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.abs(decode(data, size=96).pixels.astype(int) - np.asarray(full)).max() <= 3


def test_libjpeg_is_asked_for_the_smallest_scale_that_is_large_enough(monkeypatch):
    asked = []
    draft = Image.OPEN["JPEG"][0].__globals__["JpegImageFile"].draft

    def spy(self, mode, size):
        result = draft(self, mode, size)
        asked.append(self.size)
        return result

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", spy)
    for detail in (None, 320, 640, 1000):
        decode(pictures.picture("JPEG", 1600, 1200), size=224, detail=detail)
    assert asked == [(400, 300), (400, 300), (800, 600), (1600, 1200)]


def test_a_picture_smaller_than_size_is_enlarged():
    assert_quadrants(decode(pictures.picture("JPEG", 16, 16), size=224).pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_only_the_first_frame_is_read(kind):
    found = decode(pictures.animated(kind), size=32)
    assert found.format == kind
    assert_quadrants(found.pixels, tolerance=10)


def test_a_gif_of_a_million_frames_is_as_quick_as_its_first():
    data = pictures.gif(1, 1, frames=1_000_000)
    decode(data)
    start = time.thread_time()
    assert decode(data).pixels.tolist() == [[[255, 0, 0]]]
    assert time.thread_time() - start < 0.5


def test_a_gif_whose_frame_is_larger_than_its_screen_is_whole():
    found = decode(pictures.gif(1, 1, before=b"!\xfe\x02hi\0"))
    assert (found.width, found.height) == (1, 1)
    assert code_of(pictures.gif(1, 1, frame=(200, 100)), max_pixels=19_999) == "too_many_pixels"


def test_an_rle_bitmap_is_read():
    found = decode(pictures.bmp(4, 2, b"\x04\x07\0\0\x04\x09\0\1", bits=8, compression=1))
    assert found.pixels[:, 0].tolist() == [[4, 246, 9], [3, 248, 7]]


@pytest.mark.parametrize("name", ["photo.txt", "photo.gif", "photo", "photo.exe"])
def test_the_file_name_does_not_matter(name, tmp_path):
    path = pictures.write_picture(tmp_path / name, "PNG")
    assert decode(path).format == decode(str(path)).format == "PNG"


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_path_and_its_bytes_give_the_same_pixels(kind, tmp_path):
    path = pictures.write_picture(tmp_path / "photo", kind)
    assert np.array_equal(decode(path, size=32).pixels, decode(path.read_bytes(), size=32).pixels)


@pytest.mark.parametrize("major", [b"mif1", b"heic"])
def test_heif_is_told_from_avif_by_its_brands(major):
    data = pictures.picture("HEIF")
    assert decode(data[:8] + major + data[12:]).format == "HEIF"
    avif = pictures.picture("AVIF")
    assert decode(avif[:8] + b"mif1" + avif[12:]).format == "AVIF"


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1600, 1200, (640, 480)),
        (300, 200, (300, 200)),
        (50, 2000, (16, 640)),
        (1, 3000, (1, 640)),
        (641, 640, (640, 639)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_detail_keeps_its_shape_and_is_never_enlarged(kind, width, height, expected):
    found = decode(pictures.picture(kind, width, height), size=32, detail=640)
    assert (found.detail.shape[1], found.detail.shape[0]) == expected
    assert (found.width, found.height, found.pixels.shape) == (width, height, (32, 32, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_detail_of_a_turned_picture_is_upright_too(orientation):
    found = decode(pictures.oriented("JPEG", orientation, 640, 480), size=32, detail=160)
    assert found.detail.shape == (120, 160, 3)
    assert_quadrants(found.detail)


@pytest.mark.parametrize("options", [{"detail": 0, "size": 8}, {"detail": 8}])
def test_a_detail_without_a_size_or_below_one_is_the_callers_mistake(options):
    with pytest.raises(ValueError, match="detail"):
        decode(pictures.picture(), **options)


def test_a_size_below_one_is_the_callers_mistake_not_the_photos():
    with pytest.raises(ValueError, match="size 0"):
        decode(pictures.picture(), size=0)


# Errors


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert code_of(tmp_path / "empty.jpg") == "empty"


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text\n" * 20,
        b"\0" * 1000,
        b"\xff",
        b"%PDF-1.7\n1 0 obj\n",
        b"8BPS\0\1" + b"\0" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\0\0\0\x18ftypisom\0\0\2\0isomiso2avc1mp41" + b"\0" * 100,
        b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 100,
        b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 100,
        b"PK\3\4" + b"\0" * 100,
    ],
)
def test_what_is_no_picture_is_called_so(data):
    assert code_of(data) == "not_an_image"


def test_ghostscript_is_never_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    assert code_of(eps) == "not_an_image"
    assert not ran.exists()


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_truncated_file_is_an_error(kind):
    data = pictures.encoded(pictures.noise(80, 60), kind)
    for part in range(1, 10):
        assert code_of(data[: max(12, len(data) * part // 10)], size=32) == "truncated"


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}])
def test_a_truncated_compressed_tiff_is_an_error(options):
    data = pictures.encoded(pictures.noise(80, 60), "TIFF", **options)
    for part in range(1, 10):
        assert code_of(data[: len(data) * part // 10]) in {"truncated", "corrupt"}


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_signature_alone_is_an_error(kind):
    data = pictures.picture(kind)
    for end in (12, 16, 20, 24, 30):
        assert code_of(data[:end]) in {"truncated", "corrupt", "not_an_image"}


def test_a_png_with_a_wrong_checksum_is_corrupt():
    data = bytearray(pictures.picture("PNG"))
    data[data.index(b"IHDR") + 20] ^= 1
    assert code_of(bytes(data)) == "corrupt"


def test_an_unknown_kind_of_tiff_is_unsupported():
    assert (
        code_of(pictures.tiff([(256, 4, [4]), (257, 4, [4]), (258, 3, [3]), (262, 3, [1]), (273, 4, [8])]))
        == "unsupported"
    )


def test_an_unknown_kind_of_bitmap_is_unsupported():
    assert code_of(pictures.bmp(4, 4, b"\0" * 64, compression=4)) == "unsupported"


def test_what_the_file_says_cannot_break_the_line():
    data = pictures.picture("HEIF").replace(b"clap", b"\n\x1b[C")
    assert code_of(data) in {"corrupt", "unsupported"}


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_picture_over_the_limit_is_an_error_that_names_the_setting(kind):
    with pytest.raises(ImageError, match=r"64 x 48 pixels .* 3,071 \(tray.max_pixels\)") as caught:
        decode(pictures.picture(kind), max_pixels=64 * 48 - 1)
    assert caught.value.code == "too_many_pixels"
    assert decode(pictures.picture(kind), max_pixels=64 * 48).width == 64


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError, PermissionError])
def test_a_path_that_cannot_be_read_is_an_oserror(error, tmp_path, monkeypatch):
    target = tmp_path if error is IsADirectoryError else tmp_path / "photo.jpg"
    if error is PermissionError:
        monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(error):
        decode(target)


def test_too_little_memory_is_an_image_error(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    assert code_of(pictures.picture("PNG")) == "too_many_pixels"


@pytest.mark.parametrize("others", ["always", "error"])
def test_no_warning_leaks_whatever_filter_others_put_first(others):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\xff\xff\xff\x7f\0\0\0\0\x0f\x01\x02\0\x20\0\0\0\xff\xff\0\0"
    mpf = b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\x04\0\x01\0\0\0\x02\0\0\0"
    jpeg = pictures.picture("JPEG", exif=exif)
    jpeg = jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(mpf) + 2) + mpf + jpeg[2:]
    apng = pictures.png(4, 4, pictures.png_chunk(b"acTL", struct.pack(">II", 0, 0)))
    with warnings.catch_warnings(record=True) as seen:
        decode(jpeg)
        warnings.simplefilter(others)
        decode(jpeg)
        decode(apng)
    assert not seen


def test_pillows_own_limit_does_not_stand_in_the_way(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    images._set_up.cache_clear()
    for kind in images.FORMATS:
        assert decode(pictures.picture(kind), max_pixels=64 * 48).width == 64


# Damage of every kind

SMALL = {kind: pictures.picture(kind, 24, 16) for kind in images.FORMATS}
SMALL |= {
    "TIFF lzw": pictures.picture("TIFF", 24, 16, compression="tiff_lzw"),
    "GIF animated": pictures.animated("GIF", width=24, height=16),
    "PNG animated": pictures.animated("PNG", width=24, height=16),
    "WEBP animated": pictures.animated("WEBP", width=24, height=16),
    "WEBP lossy": pictures.picture("WEBP", 24, 16, lossless=False),
    "PNG palette": pictures.encoded(in_mode("P"), "PNG", transparency=1),
    "BMP rle": pictures.bmp(4, 2, b"\x04\x07\0\0\x04\x09\0\1", bits=8, compression=1),
}


def assert_picture_or_error(data):
    try:
        found = decode(data, size=16, detail=20, max_pixels=1_000_000)
    except ImageError as error:
        found = error
    if isinstance(found, ImageError):
        assert found.code in CODES
        assert str(found).isprintable()
    else:
        assert found.pixels.shape == (16, 16, 3)
        assert found.detail.dtype == np.uint8
        assert max(found.detail.shape[:2]) == min(20, max(found.width, found.height))
        assert 0 < found.width * found.height <= 1_000_000


@st.composite
def damage(draw):
    data = bytearray(SMALL[draw(st.sampled_from(sorted(SMALL)))])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("flip", "set", "cut", "splice", "drop", "grow"))):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at : at + 4] = draw(
                    st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x01", b"\x7f\xff\xff\xff"))
                )
            case "cut":
                del data[at:]
            case "splice":
                other = SMALL[draw(st.sampled_from(sorted(SMALL)))]
                data[at:at] = other[draw(st.integers(0, len(other))) :][:200]
            case "drop":
                del data[at : at + draw(st.integers(1, 64))]
            case "grow":
                data[at:at] = draw(st.binary(max_size=64))
    return bytes(data)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damage())
def test_a_damaged_file_gives_a_picture_or_an_error(data):
    assert_picture_or_error(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.binary(max_size=300))
def test_a_signature_before_random_bytes_gives_a_picture_or_an_error(kind, data):
    assert_picture_or_error(SMALL[kind][:16] + data)


# Bombs: little files that promise much

ZEROS = pictures.deflated_zeros(300)
STRIPS = [(273, 4, [8] * 1_000_000), (278, 4, [1]), (279, 4, [100])]
BYTES = [(273, 1, [8] * 1_000_000), (278, 4, [1]), (279, 4, [100])]
# An extension with an empty first block: Pillow skips the small frame that follows, as if it were data.
HIDDEN = b"!\xfa\0" + (b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)).ljust(45, b"\0") + b"\0" + pictures.gif_disposal(2)
BOMBS = {
    "png": (pictures.png(50_000, 50_000, pixels=ZEROS), "too_many_pixels"),
    "png text": (pictures.png(8, 8, pictures.png_chunk(b"zTXt", b"k\0\0" + ZEROS)), "unsupported"),
    "png late text": (pictures.png(8, 8, after=pictures.png_chunk(b"zTXt", b"k\0\0" + ZEROS)), "unsupported"),
    "png profile": (pictures.png(8, 8, pictures.png_chunk(b"iCCP", b"k\0\0" + ZEROS)), "unsupported"),
    "png pixels": (pictures.png(8, 8, pixels=ZEROS), None),
    "gif screen": (pictures.gif(50_000, 50_000), "too_many_pixels"),
    "gif frame": (pictures.gif(1, 1, (50_000, 50_000)), "too_many_pixels"),
    "gif disposal": (pictures.gif(1, 1, (50_000, 50_000), before=pictures.gif_disposal(2)), "too_many_pixels"),
    "gif previous": (pictures.gif(1, 1, (50_000, 50_000), before=pictures.gif_disposal(3)), "too_many_pixels"),
    "gif hidden frame": (pictures.gif(1, 1, (50_000, 50_000), before=HIDDEN), "too_many_pixels"),
    "gif blocks": (pictures.gif(1, 1, before=b"!\xfe\1a\0" * 1_000_000), "corrupt"),
    "webp lossy": (pictures.webp(b"VP8 ", 16_383, 16_383), "too_many_pixels"),
    "webp lossless": (pictures.webp(b"VP8L", 16_383, 16_383), "too_many_pixels"),
    "webp canvas": (pictures.webp(b"VP8X", 16_383, 16_383), "too_many_pixels"),
    "bmp": (pictures.bmp(50_000, 50_000), "too_many_pixels"),
    "bmp rle": (pictures.bmp(50_000, 50_000, b"\0\2\xff\xff", bits=8, compression=1), "too_many_pixels"),
    "bmp line": (pictures.bmp(100_000_000, 1, b"\0\2\xff\xff", bits=8, compression=1), "unsupported"),
    "tiff": (pictures.tiff_rgb(50_000, 50_000), "too_many_pixels"),
    "tiff lzw": (pictures.tiff_rgb(50_000, 50_000, compression=5), "too_many_pixels"),
    "tiff big": (pictures.tiff_rgb(50_000, 50_000, big=True), "too_many_pixels"),
    "tiff strips": (pictures.tiff_rgb(64, 64, *STRIPS), "corrupt"),
    "tiff strips in bytes": (pictures.tiff_rgb(64, 64, *BYTES), "corrupt"),
    "jpeg": (pictures.picture("JPEG").replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_000, 65_000)),
             "too_many_pixels"),
    "jpeg exif": (b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + b"\0" * 65_527) * 200 + pictures.picture("JPEG")[2:],
                  "corrupt"),
    "avif": (pictures.picture("AVIF").replace(struct.pack(">II", 64, 48), struct.pack(">II", 16_000, 16_000)),
             "too_many_pixels"),
    "heif": (pictures.picture("HEIF").replace(struct.pack(">II", 64, 64), struct.pack(">II", 32_000, 32_000)),
             "too_many_pixels"),
}  # fmt: skip
for order in "<>":
    for big in (False, True)[: 2 if order == "<" else 1]:
        for kind in (3, 4):
            tile = [(322, kind, [60_000]), (323, kind, [60_000]), (324, 4, [8]), (325, 4, [100])]
            data = pictures.tiff_rgb(64, 64, *tile, compression=5, order=order, big=big)
            BOMBS[f"tiff tile {order} {big} {kind}"] = (data, "too_many_pixels")

MEASURE = """
    import json, pathlib, re, sys
    from trainer.images import ImageError, decode

    def peak():  # in MB; not ru_maxrss, which a child inherits from the (large) process that started it
        return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024

    found = {}
    decode(pathlib.Path(sys.argv[1], "warm-up"), size=8)
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        before, code, message = peak(), None, ""
        try:
            decode(path, size=8)
        except ImageError as error:
            code, message = error.code, str(error)
        found[path.name] = [code, message, peak() - before]
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    for name, (data, _) in BOMBS.items():
        (folder / name).write_bytes(data)
    pictures.write_picture(folder / "warm-up", "WEBP")
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(name, measured):
    code, message, growth = measured[name]
    assert code == BOMBS[name][1]
    assert growth < 150
    if code == "too_many_pixels" and name != "gif hidden frame":
        assert re.fullmatch(
            r"[\d,]+ x [\d,]+ pixels are more than the limit of 100,000,000 \(tray.max_pixels\)", message
        )


# Threads


def test_eight_threads_give_the_same_pixels():
    files = [pictures.encoded(pictures.noise(120, 90, seed=i), kind) for i, kind in enumerate(images.FORMATS * 2)]
    files += [pictures.encoded(in_mode("LAB"), "TIFF"), pictures.oriented("JPEG", 6), b"no picture"]

    def outcome(data):
        try:
            return decode(data, size=32).pixels.tobytes()
        except ImageError as error:
            return error.code

    expected = [outcome(data) for data in files]
    images._set_up.cache_clear()
    start, found = threading.Barrier(8), {}

    def work(seat):
        start.wait()
        found[seat] = [outcome(data) for data in files[seat:] + files[:seat]]

    threads = [threading.Thread(target=work, args=(seat,)) for seat in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seat: expected[seat:] + expected[:seat] for seat in range(8)}


def test_importing_changes_nothing_in_pillow():
    code = (
        "import trainer.images, warnings, PIL.Image as I; print(I.MAX_IMAGE_PIXELS, 'HEIF' in I.OPEN, warnings.filters)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith("89478485 False [")
    assert "PIL" not in found
