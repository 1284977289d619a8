"""Image files made for tests, of depths and modes that Pillow does not write too."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0)
COLOUR = NOISE.integers(0, 256, (40, 30, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def file(image: Image.Image, form: str = "PNG", **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    buffer.seek(0)
    return buffer


def png(samples: np.ndarray, bits: int, colour_type: int, transparent: bytes = b"") -> io.BytesIO:
    """A PNG file of integers (H, W) or (H, W, C), of depths that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    lines = b""
    for line in samples.reshape(height, -1):
        packed = "".join(format(int(sample), f"0{bits}b") for sample in line)
        packed += "0" * (-len(packed) % 8)
        lines += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    notes = chunk(b"tRNS", transparent) if transparent else b""
    parts = [chunk(b"IHDR", header), notes, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
