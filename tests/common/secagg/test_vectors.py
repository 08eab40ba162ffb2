"""Primitives against the vectors of their standards, and the oracle against both."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg.keys import public_of
from common.secagg.masks import apply_masks
from tests.common.secagg import oracle

b = bytes.fromhex


def test_hkdf_gives_the_key_of_rfc_5869_case_3():
    wanted = b(
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
        "9d201395faa4b61a96c8"
    )
    secret = b("0b" * 22)
    assert HKDF(SHA256(), 42, salt=None, info=b"").derive(secret) == wanted
    assert oracle.hkdf(secret, b"", 42) == wanted


def test_x25519_gives_the_keys_of_rfc_7748_section_6_1():
    a = b("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    other = b("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    public = b("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    shared = b("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert public_of(a) == public == oracle.x25519(a, (9).to_bytes(32, "little"))
    key = X25519PrivateKey.from_private_bytes(a)
    assert key.exchange(X25519PublicKey.from_public_bytes(other)) == shared
    assert oracle.x25519(a, other) == shared


def test_ed25519_gives_the_signature_of_rfc_8032_test_1():
    key = Ed25519PrivateKey.from_private_bytes(
        b("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert key.sign(b"") == b(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33b"
        "acc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


@pytest.mark.parametrize(
    ("key", "block", "wanted"),
    [
        # FIPS 197, appendix C.1
        (
            "000102030405060708090a0b0c0d0e0f",
            "00112233445566778899aabbccddeeff",
            "69c4e0d86a7b0430d8cdb78070b4c55a",
        ),
        # SP 800-38A, F.5.1: what the first block is XORed with
        (
            "2b7e151628aed2a6abf7158809cf4f3c",
            "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            "ec8cdf7398607cb0f2d21675ea9ea1e4",
        ),
    ],
)
def test_the_oracles_aes_is_that_of_the_standards(key, block, wanted):
    assert oracle.aes128(b(key), b(block)) == b(wanted)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_mask_is_the_keystream_from_counter_zero(bits):
    key = b("2b7e151628aed2a6abf7158809cf4f3c")
    numbers = np.zeros(101, dtype=f"<u{bits // 8}")
    apply_masks(numbers, plus=[key])
    assert numbers.tolist() == oracle.mask_numbers(key, 101, bits)
    apply_masks(numbers, minus=[key])
    assert not numbers.any()


def test_a_mask_goes_on_across_chunks():
    key, long = bytes(range(16)), np.zeros(300_001, dtype="<u4")
    apply_masks(long, plus=[key])
    at = 65_536 * 2 - 2  # either side of a chunk's end
    first = (at * 4 // 16).to_bytes(16)
    stream = oracle.aes128(key, first)[(at * 4) % 16 :]
    after = oracle.aes128(key, (int.from_bytes(first) + 1).to_bytes(16))
    wanted = np.frombuffer(stream + after, dtype="<u4")
    assert long[at : at + len(wanted)].tolist() == wanted.tolist()
