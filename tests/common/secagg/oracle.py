"""The protocol's arithmetic once more, slowly: Python's integers, hashlib and hmac.

Shares no code with `common.secagg` but the canonical bytes of the terms. AES is written
out from FIPS 197, X25519 from RFC 7748, so that each primitive has a second witness.
"""

import hashlib
import hmac
import math
from fractions import Fraction


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt."""
    pseudo = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    out, block, count = b"", b"", 1
    while len(out) < length:
        block = hmac.new(pseudo, block + info + bytes([count]), hashlib.sha256).digest()
        out, count = out + block, count + 1
    return out[:length]


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder."""
    p = 2**255 - 19
    k = int.from_bytes(scalar, "little")
    k = (k & ~7 & ~(1 << 255)) | (1 << 254)
    u = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x1, x2, z2, x3, z3, swap = u, 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = (k >> t) & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a, c * b, a * a, b * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _sbox() -> list[int]:
    box = []
    for value in range(256):
        inverse = next((x for x in range(256) if _times(value, x) == 1), 0)
        out = 0x63
        for turn in range(5):
            out ^= ((inverse << turn) | (inverse >> (8 - turn))) & 0xFF
        box.append(out)
    return box


SBOX = _sbox()


def aes128(key: bytes, block: bytes) -> bytes:
    """FIPS 197, section 5.1."""
    words = [list(key[i : i + 4]) for i in range(0, 16, 4)]
    rcon = 1
    for i in range(4, 44):
        word = list(words[i - 1])
        if i % 4 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= rcon
            rcon = _times(rcon, 2)
        words.append([a ^ b for a, b in zip(words[i - 4], word, strict=True)])
    flat = [byte for word in words for byte in word]
    rounds = [flat[16 * r : 16 * r + 16] for r in range(11)]
    state = [a ^ b for a, b in zip(block, rounds[0], strict=True)]
    for r in range(1, 11):
        state = [SBOX[b] for b in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if r < 10:
            mixed = []
            for c in range(4):
                column = state[4 * c : 4 * c + 4]
                for i in range(4):
                    w, x, y, z = (column[(i + j) % 4] for j in range(4))
                    mixed.append(_times(w, 2) ^ _times(x, 3) ^ y ^ z)
            state = mixed
        state = [a ^ b for a, b in zip(state, rounds[r], strict=True)]
    return bytes(state)


def keystream(key: bytes, size: int) -> bytes:
    """Counter mode from zero (NIST SP 800-38A, 6.5)."""
    blocks = (aes128(key, i.to_bytes(16)) for i in range(math.ceil(size / 16)))
    return b"".join(blocks)[:size]


def mask_numbers(key: bytes, count: int, bits: int) -> list[int]:
    """A key's mask as integers."""
    stream, width = keystream(key, count * bits // 8), bits // 8
    return [
        int.from_bytes(stream[i : i + width], "little")
        for i in range(0, len(stream), width)
    ]


def fixed(value: float, bound: float, limit: int, weight: int, cap: int, u: float):
    """One number as a site rounds it, exactly."""
    cut = max(-bound, min(bound, value))
    exact = Fraction(cut) * limit * weight / (Fraction(bound) * cap)
    return math.floor(exact + Fraction(u))
