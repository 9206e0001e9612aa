"""A PNG without its texts and colour profile, for pillow refuses pictures over long ones.

Editors and generators store megabytes beside the pixels: edit histories, workflows, profiles. Pixels don't depend on
them; what says how the picture is turned stays. This file travels with each variant.
"""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_KEPT = 4 << 20  # bytes of all texts that stay, unpacked
_TURN = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")


def without_texts(png: bytes) -> bytes | None:
    """The same picture without tEXt, zTXt, iTXt and iCCP chunks, but for XMP and EXIF; None: it is no PNG.

    Long XMP is cut. Nothing is unpacked beyond `MAX_KEPT`, and a damaged file stays as damaged as it is.
    """
    if not png.startswith(SIGNATURE):
        return None
    view, kept, left, at = memoryview(png), [memoryview(SIGNATURE)], MAX_KEPT, len(SIGNATURE)
    while at + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            text = _turning(kind, bytes(view[at + 8 : end - 4]), left)
            left -= len(text)
            if text:
                kept.append(memoryview(text))
        elif kind != b"iCCP":
            kept.append(view[at:end])
        at = end
    return b"".join([*kept, view[at:]])


def _turning(kind: bytes, body: bytes, most: int) -> bytes:
    """The chunk, unpacked, if it may say how the picture is turned, else nothing."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _TURN:
        return b""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    try:
        text = zlib.decompressobj().decompress(rest, max(1, most)) if packed else rest
    except zlib.error:
        return b""
    if kind != b"iTXt":  # EXIF as hexadecimal digits, of which a part says nothing
        return _chunk(b"tEXt", keyword + b"\0" + text) if len(text) < most else b""
    return _chunk(kind, keyword + b"\0" * 5 + text[:most].decode("utf-8", "ignore").encode())


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
