"""Test pictures, drawn and written by our own code: valid files of every format, and files built by hand to do harm.

The drawing is always four quadrants (red, green / blue, yellow), so that a turned, mirrored, inverted or wrongly
scaled picture can be told from a right one by looking at four points.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "HEIF")
COLOURS = ((220, 40, 40), (40, 200, 60), (40, 60, 210), (230, 210, 50))
ORIENTATION = 274
# What a camera stores, for each EXIF orientation, so that the picture is upright again after it is turned.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quadrants(width=64, height=48, mode="RGB"):
    """Draw red, green / blue, yellow, in any mode of Pillow's."""
    image = Image.new("RGB", (width, height))
    for i, colour in enumerate(COLOURS):
        x, y = i % 2 * (width // 2), i // 2 * (height // 2)
        image.paste(colour, (x, y, width if i % 2 else x + width // 2, height if i // 2 else y + height // 2))
    return as_mode(image, mode)


def as_mode(image, mode):
    grey = np.asarray(image.convert("L"))
    if mode.startswith("I;16"):
        return Image.fromarray(grey.astype(mode.replace("I;16B", ">u2").replace("I;16", "<u2")) * 257)
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 1_000_000)
    if mode == "F":
        return Image.fromarray((grey / 1000).astype(np.float32))
    if mode == "P":
        return image.quantize(16)
    if mode == "1":
        return image.convert("1", dither=Image.Dither.NONE)
    return image.convert(mode)


def faded(image, quadrant=0):
    """Make one quadrant fully transparent (its hidden colour stays), in LA or RGBA."""
    image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    width, height = image.width // 2, image.height // 2
    alpha = image.getchannel("A")
    alpha.paste(
        0, (quadrant % 2 * width, quadrant // 2 * height, (quadrant % 2 + 1) * width, (quadrant // 2 + 1) * height)
    )
    image.putalpha(alpha)
    return image


def encoded(image, kind="JPEG", **options):
    """Write an image as a file of that format; lossless or nearly so unless the options say otherwise."""
    pillow_heif.register_heif_opener()
    defaults = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 95, "speed": 10},
        "HEIF": {"quality": 95, "chroma": 444},
    }
    out = io.BytesIO()
    image.save(out, kind, **({} if image.mode == "L" and kind == "JPEG" else defaults.get(kind, {})) | options)
    return out.getvalue()


def picture(kind="JPEG", width=64, height=48, **options):
    """Give the bytes of a valid file with the four quadrants."""
    return encoded(quadrants(width, height), kind, **options)


def write_picture(path, kind=None, width=64, height=48, **options):
    """Write a valid file; the format follows the suffix unless it is named."""
    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    known = {"jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF", "heic": "HEIF", "heif": "HEIF"}
    path.write_bytes(picture(kind or known.get(suffix, suffix.upper()), width, height, **options))
    return path


def oriented(kind, orientation, width=64, height=48):
    """Give a file that is stored turned or mirrored, with the EXIF orientation that sets it right."""
    image = quadrants(width, height)
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, kind, exif=exif.tobytes())


def noise(width, height, block=4, seed=0):
    """Draw blocks of random colours: what blurs, aliases or shifts when it is scaled wrongly."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // block), -(-width // block), 3), dtype=np.uint8)
    return Image.fromarray(small.repeat(block, 0).repeat(block, 1)[:height, :width])


def animated(kind, frames=3, width=64, height=48):
    """Give an animation (or a TIFF of several pages, an MPO for JPEG) whose first frame alone has the quadrants."""
    rest = [Image.new("RGB", (width, height), (i * 5 % 256, 255, 255)) for i in range(1, frames)]
    return encoded(
        quadrants(width, height), {"JPEG": "MPO"}.get(kind, kind), save_all=True, append_images=rest, quality=95
    )


# Files built by hand: little in them, much in their headers.


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deflated_zeros(megabytes):
    """Give a zlib stream (without its end) of that many zeros, at once: a full flush makes each piece the same."""
    squeeze = zlib.compressobj(9)
    first, again = (squeeze.compress(b"\0" * 2**20) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (megabytes - 1)


def png(width, height, *extra, after=b"", pixels=None):
    """Build an 8-bit RGB PNG, `extra` chunks before its pixels: red ones, unless a zlib stream of rows is given."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", pixels or zlib.compress((b"\0" + b"\xff\0\0" * width) * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + after + png_chunk(b"IEND", b"")


def gif(width, height, frame=None, *, before=b"", frames=1):
    """Build a GIF of two colours; `before` are blocks ahead of the first frame; a frame is 1 x 1 unless it is given."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\xff\0\0\0\0\xff"
    image = b"," + struct.pack("<HHHHB", 0, 0, *(frame or (1, 1)), 0) + b"\x02\x02\x44\x01\x00"
    return screen + before + image * frames + b";"


def gif_disposal(method):
    """Build the graphic control extension that asks for a disposal method."""
    return b"!\xf9\x04" + bytes([method << 2, 0, 0, 0, 0])


def webp(kind, width, height, body=b"\0" * 64):
    """Build a WebP whose header alone is right: kind is b"VP8 ", b"VP8L" or b"VP8X"."""
    header = {
        b"VP8 ": b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF),
        b"VP8L": b"\x2f" + struct.pack("<I", (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14),
        b"VP8X": b"\x02\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3],
    }[kind]
    chunk = kind + struct.pack("<I", len(header + body)) + header + body
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def bmp(width, height, body=b"", bits=24, compression=0):
    """Build a Windows bitmap; compression 1 is RLE8."""
    palette = bytes(x for i in range(256) for x in (i, 255 - i, i // 2, 0)) if bits == 8 else b""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}


def tiff(entries, body=b"\0" * 256, *, order="<", big=False):
    """Build a TIFF from (tag, type, values): type 1 is BYTE, 3 SHORT, 4 LONG; `big` for BigTIFF."""
    count, word = ("Q", 8) if big else ("H", 4)
    offset = "Q" if big else "I"
    mark = {"<": b"II", ">": b"MM"}[order]
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8))
    at = len(head) + struct.calcsize(order + count) + len(entries) * (4 + 2 * word) + word
    directory, tail = struct.pack(order + count, len(entries)), b""
    for tag, kind, values in entries:
        raw = struct.pack(f"{order}{len(values)}{_TIFF_TYPES[kind]}", *values)
        directory += struct.pack(order + "HH" + offset, tag, kind, len(values))
        if len(raw) <= word:
            directory += raw.ljust(word, b"\0")
        else:
            directory += struct.pack(order + offset, at + len(tail))
            tail += raw
    return head + directory + b"\0" * word + tail + body


def tiff_rgb(width, height, *more, compression=1, **options):
    """Build an RGB TIFF of one strip unless `more` entries say otherwise."""
    basic = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8, 8, 8]), (259, 3, [compression]), (262, 3, [2])]
    strip = [(273, 4, [8]), (278, 4, [height]), (279, 4, [100])]
    return tiff(sorted([*basic, (277, 3, [3]), *(more or strip)]), **options)
