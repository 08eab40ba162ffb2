"""Masks: keystreams of AES-128 in counter mode (NIST SP 800-38A), added or taken off.

Each key is used for one vector of one round, so the counter always starts at zero. The
vector is gone over once, in chunks that stay in the cache, with all keys at each chunk:
so a mask is never held as a whole.
"""

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import (
    Cipher,
    CipherContext,
    algorithms,
    modes,
)

from common.secagg.fixed_point import Masked

_CHUNK_BYTES = 1 << 18


def apply_masks(
    numbers: Masked, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()
) -> None:
    """Add some keys' masks to the numbers and take others' off, in place.

    Args:
        numbers: Little-endian, modulo 2^32 or 2^16.
        plus: AES-128 keys whose masks are added.
        minus: Keys whose masks are taken off.
    """
    added, taken = [_stream(k) for k in plus], [_stream(k) for k in minus]
    zeros = bytes(_CHUNK_BYTES)
    buffer = bytearray(_CHUNK_BYTES + 15)  # the room `update_into` asks for
    step = _CHUNK_BYTES // numbers.itemsize
    for start in range(0, numbers.size, step):
        part = numbers[start : start + step]
        mask = np.frombuffer(buffer, dtype=numbers.dtype, count=part.size)
        clear = memoryview(zeros)[: part.nbytes]
        for stream in added:
            stream.update_into(clear, buffer)
            np.add(part, mask, out=part)
        for stream in taken:
            stream.update_into(clear, buffer)
            np.subtract(part, mask, out=part)


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
