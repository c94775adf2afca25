"""Headers: what a picture file says about itself, read before any decoder may allocate what it promises.

Invariant: whatever passes here makes the decoder's memory proportional to the pixels that were checked; nothing here
trusts a length that the file does not hold.
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

Code = Literal["empty", "not_an_image", "truncated", "corrupt", "too_many_pixels", "unsupported"]

MAX_SIDE = 65_535  # JPEG's and GIF's own; at 100,000,000 x 1 pixels the tables of a resize alone take 1.6 GB
_MAX_BLOCKS = 100_000  # of a GIF before its first frame; Pillow would walk any number of them
_MAX_VALUES = 250_000  # in one TIFF tag; Pillow makes Python objects of them: a 20 MB file took 1.2 GB and 25 s
_MAX_EXIF = 100  # blocks in one JPEG; Pillow joins them one by one: a 190 MB file took 128 s

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "HEIF")  # Pillow's names
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
}  # fmt: skip
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"heim": "HEIF", b"heis": "HEIF",
    b"hevc": "HEIF", b"hevx": "HEIF", b"hevm": "HEIF", b"hevs": "HEIF",
}  # fmt: skip
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


class ImageError(Exception):
    """What is wrong with this file, in one line for a person; `code` says the same to programs."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


def sniff(data: bytes) -> str:
    """Return the format that the first bytes tell, one of FORMATS. Raises ImageError for all others."""
    if not data:
        raise ImageError("empty", "the file is empty")
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":  # ISO/IEC 14496-12, 4.3: the major brand, a version, the compatible brands
        end = min(int.from_bytes(data[:4], "big"), 256)
        for brand in (data[8:12], *(data[i : i + 4] for i in range(16, end, 4))):
            if brand in _BRANDS:
                return _BRANDS[brand]
    raise ImageError("not_an_image", f"not a picture in a format that can be read ({', '.join(FORMATS)})")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError where a picture of this size is not to be decoded."""
    if width * height > max_pixels:
        found = f"{width:,} x {height:,} pixels"
        raise ImageError("too_many_pixels", f"{found} are more than the limit of {max_pixels:,} (tray.max_pixels)")
    if max(width, height) > MAX_SIDE:
        raise ImageError("unsupported", f"{width:,} x {height:,} pixels: a side is longer than {MAX_SIDE:,}")


def _check_jpeg(data: bytes, _: int) -> None:
    if data.count(b"Exif\0\0") > _MAX_EXIF:
        raise ImageError("corrupt", "the JPEG file has too many EXIF blocks")


def _check_gif(data: bytes, max_pixels: int) -> None:
    """Check screen and first frame: Pillow allocates a frame while it opens the file (GIF89a specification, 18-23)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    for _ in range(_MAX_BLOCKS):
        if data[at] == ord(","):
            x, y, w, h = struct.unpack_from("<HHHH", data, at + 1)
            return check_size(max(width, x + w), max(height, y + h), max_pixels)
        if data[at] == ord("!"):
            at += 2
            while data[at]:
                at += data[at] + 1
        at += 1
    raise ImageError("corrupt", "the GIF file has no picture among its first blocks")


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Check the canvas: libwebp allocates it while Pillow opens the file (RFC 9649, 2.5 to 2.7)."""
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    check_size(width, height, max_pixels)


def _check_tiff(data: bytes, max_pixels: int) -> None:
    """Check the first directory: libtiff allocates whole tiles (322 by 323), Pillow every strip's offset (TIFF 6.0)."""
    word, half = (8, 8) if b"+" in data[2:4] else (4, 2)  # BigTIFF or not
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"

    def number(at: int, length: int) -> int:
        return int.from_bytes(data[at : at + length], order)

    tile = {322: 0, 323: 0}
    first = number(word, word)
    for i in range(min(number(first, half), 65_535)):
        at = first + half + i * (4 + 2 * word)
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, word)
        if count > _MAX_VALUES and (kind not in (1, 2, 6, 7) or tag in (273, 324)):  # bytes are cheap, but as offsets
            raise ImageError("corrupt", f"the TIFF file has {count:,} values in tag {tag}")
        if tag in tile:
            tile[tag] = max(tile[tag], number(at + 4 + word, {3: 2, 4: 4}.get(kind, word)))
    check_size(tile[322], tile[323], max_pixels)


def _check_heif(data: bytes, max_pixels: int) -> None:
    """Check each item's own size (ispe): a crop may leave little of it, yet all of it is decoded (ISO/IEC 23008-12).

    libheif refuses a coded picture larger than its ispe; libavif decodes it, up to its own limit of 16,384 x 16,384.
    """
    for kind, start, end in _boxes(data):
        for found in re.finditer(rb"\0\0\0.ispe....(.{8})", data[start:end] if kind == b"meta" else b"", re.DOTALL):
            width, height = struct.unpack(">II", found[1])
            if width * height > 2 * max_pixels:  # coders pad: a little more than the picture is no bomb
                check_size(width, height, max_pixels)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Walk the top-level boxes: type, start, end (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        end = at + max(size, 8) if size else len(data)
        yield data[at + 4 : at + 8], at, end
        at = end


CHECKS = {
    "JPEG": _check_jpeg, "GIF": _check_gif, "WEBP": _check_webp, "TIFF": _check_tiff, "AVIF": _check_heif,
    "HEIF": _check_heif,
}  # fmt: skip


def ends_early(data: bytes, name: str) -> bool:
    """Say whether the file lacks its own end; asked only once decoding has failed."""
    if name in _ENDS:
        return not data.rstrip(b"\0").endswith(_ENDS[name])
    order: Literal["little", "big"] = "big" if data[:2] == b"MM" else "little"
    lengths = {"BMP": (2, 0), "WEBP": (4, 8), "TIFF": (4, 2)}  # where a length (TIFF: an offset) is, and what to add
    if name in lengths:
        at, more = lengths[name]
        return len(data) < int.from_bytes(data[at : at + 4], order) + more
    return len(data) < max((end for *_, end in _boxes(data)), default=0)
