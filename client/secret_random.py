"""Random numbers that nobody can foretell: for noise, for who is drawn, for rounding.

The bits are an AES-256 keystream in counter mode (NIST SP 800-90A, section 10.2, uses
the same) under a key from the operating system that lives as long as this object and
is never stored, or under one that follows from a site's own. A general-purpose
generator, torch's or numpy's, can be wound back from its output; noise that can be
foretold can be taken off again.

Floating-point attacks (Mironov 2012) read the data off the low bits of a noisy number,
because some doubles can only come from some sums. Here noise is rounded to whole
numbers before it is added to whole numbers (`client.dp_train`), so every sum can come
from every other. Rounding is a function of ideal noise, which takes nothing away from
its promise. The drawn noise differs from the ideal one by float64's errors, 2^-52 of
a number that the grid cuts at 2^-24 or coarser, and by its tails: none lies beyond 9.4
standard deviations, which ideal noise would do 5 times in 10^21.

Not covered here: the time that a draw takes, and somebody who reads this process's
memory.
"""

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import Float32, Float64, UInt64
from torch import Tensor

KEY_BYTES = 32
PIECE = 1 << 17
"""Numbers that are made together: a few megabytes, which stay in the cache."""
_WORD = 8
"""Bytes of 64 random bits."""
_ZEROS = memoryview(bytes(1 << 16))
"""What is encrypted, a piece at a time: the keystream is what comes out."""
_SPARE = 15
"""Bytes that the library wants behind what it writes: a block less one."""


class SecretStream:
    """An endless stream of random numbers under one secret key."""

    def __init__(self, key: bytes | None = None) -> None:
        """Draw a key from the operating system, or take one."""
        secret = os.urandom(KEY_BYTES) if key is None else key
        self._keystream = Cipher(algorithms.AES(secret), modes.CTR(bytes(16)))
        self._cut = self._keystream.encryptor()

    def words(self, count: int) -> UInt64[np.ndarray, " N"]:
        """So many times 64 random bits."""
        drawn = np.empty(count * _WORD + _SPARE, dtype=np.uint8)
        for start in range(0, count * _WORD, len(_ZEROS)):
            some = _ZEROS[: count * _WORD - start]
            room = drawn[start : start + len(some) + _SPARE]
            self._cut.update_into(some, room.data)
        return drawn[: count * _WORD].view(np.uint64)

    def uniform(self, count: int) -> Float64[np.ndarray, " N"]:
        """From 0 to below 1, in steps of 2^-53."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def fractions(self, count: int) -> Float32[np.ndarray, " N"]:
        """From 0 to below 1, in steps of 2^-24: half of `uniform`'s keystream."""
        halves = self.words((count + 1) // 2).view(np.uint32)[:count]
        return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)

    def generator(self) -> np.random.Generator:
        """A quick generator for what needs no secrecy by itself: places of patches."""
        return np.random.default_rng(self.words(2).tolist())

    def normal(self, count: int) -> Float64[Tensor, " N"]:
        """Standard normal numbers, at most `PIECE` (Box and Muller 1958).

        The radius takes 63 bits of its word, so that the tails reach 9.4.
        """
        half = (count + 1) // 2
        words = self.words(2 * half)
        words[:half] >>= np.uint64(1)  # twice as fast to convert as with a top bit
        words[half:] >>= np.uint64(11)
        drawn = torch.empty(2 * half, dtype=torch.float64)
        drawn.numpy()[:] = words
        radius, angle = drawn[:half], drawn[half:]
        radius.add_(0.5).mul_(2.0**-63).log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
        angle.mul_(2.0**-53).mul_(2.0 * math.pi)
        across = angle.cos()
        angle.sin_().mul_(radius)
        radius.mul_(across)
        return drawn[:count]
