import numpy as np
import torch
from Crypto.Cipher import AES
from scipy.stats import kstest

from client.secret_random import PIECE, SecretStream

KEY = bytes(range(32))


def test_the_bits_are_an_aes_256_keystream():
    """Against another library's AES."""
    cipher = AES.new(KEY, AES.MODE_CTR, nonce=b"", initial_value=0)
    expected = np.frombuffer(cipher.encrypt(bytes(800)), dtype=np.uint64)
    stream = SecretStream(KEY)
    assert np.array_equal(
        np.concatenate([stream.words(33), stream.words(67)]), expected
    )


def test_fractions_are_24_bits_of_the_keystream_and_fill_what_lies_between_0_and_1():
    words = SecretStream(KEY).words(2 * PIECE).view(np.uint32)
    drawn = SecretStream(KEY).fractions(4 * PIECE)
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn.astype(np.float64), (words >> 8) / 2.0**24)
    assert kstest(drawn, "uniform").pvalue > 0.01
    assert 0 <= drawn.min() < 1e-4 < 1 - 1e-4 < drawn.max() < 1
    assert [len(SecretStream(KEY).fractions(count)) for count in (0, 1, 7)] == [0, 1, 7]


def test_without_a_key_no_two_streams_are_alike_whatever_torch_and_numpy_are_seeded():
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        stream = SecretStream()
        seen += [stream.normal(4).tolist(), stream.generator().random(4).tolist()]
    assert len({tuple(numbers) for numbers in seen}) == 4


def test_normal_numbers_are_normal():
    stream = SecretStream(KEY)
    drawn = torch.cat([stream.normal(PIECE) for _ in range(8)]).numpy()
    assert len(drawn) == 8 * PIECE
    assert kstest(drawn, "norm").pvalue > 0.01
    assert abs(drawn.mean()) < 4 / np.sqrt(len(drawn))
    assert abs(drawn.std() - 1.0) < 0.003
    assert 4.5 < np.abs(drawn).max() < 9.5
    # Cosine and sine of one angle are independent; so are neighbours.
    half = drawn[:PIECE]
    assert abs(np.corrcoef(half[: PIECE // 2], half[PIECE // 2 :])[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.003


def test_odd_counts_and_none_are_drawn_as_asked():
    stream = SecretStream(KEY)
    assert [len(stream.normal(count)) for count in (1, 2, 7, 0)] == [1, 2, 7, 0]


def test_tails_reach_as_far_as_63_bits_can():
    """The smallest word gives the longest radius, the largest gives none."""

    class Fixed(SecretStream):
        def words(self, count):
            return np.full(count, self.word, dtype=np.uint64)

    stream = Fixed(KEY)
    stream.word = 0
    assert 9.4 < float(stream.normal(2).norm()) < 9.5
    stream.word = 2**64 - 1
    assert float(stream.normal(2).norm()) == 0.0


def test_uniform_numbers_are_below_one():
    drawn = SecretStream(KEY).uniform(1 << 16)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    assert kstest(drawn, "uniform").pvalue > 0.01
