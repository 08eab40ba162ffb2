import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ContributionError
from common.secagg.shamir import PRIME, SHARE_BYTES, check_share, join, lagrange, split

secrets = st.binary(min_size=32, max_size=32)


@given(secrets, st.data())
def test_any_threshold_of_shares_opens_the_secret(secret, data):
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, threshold, count)
    assert {len(share) for share in shares} == {SHARE_BYTES}
    places = data.draw(st.permutations(range(count)))[:threshold]
    assert join(dict(enumerate(shares)), lagrange(places)) == secret


def test_one_share_fewer_fits_every_secret_alike():
    """For t - 1 shares there is a polynomial through any secret: they say nothing."""
    secret, threshold = bytes(range(32)), 4
    shares = dict(enumerate(split(secret, threshold, 7)))
    for other in (0, 1, int.from_bytes(secret)):
        # the one share that would make `other` of shares 0, 1, 2
        weights = lagrange([0, 1, 2, 3])
        rest = sum(weights[i] * int.from_bytes(shares[i]) for i in (0, 1, 2))
        forged = (other - rest) * pow(weights[3], -1, PRIME) % PRIME
        mixed = {**shares, 3: forged.to_bytes(SHARE_BYTES)}
        assert join(mixed, weights) == other.to_bytes(32)


@given(secrets)
def test_too_few_shares_give_no_secret_of_ours(secret):
    shares = dict(enumerate(split(secret, 3, 5)))
    with pytest.raises(ContributionError, match="do not fit together"):
        join(shares, lagrange([0, 1]))


def test_what_can_be_no_share_is_refused():
    for wrong in (b"", bytes(65), PRIME.to_bytes(SHARE_BYTES)):
        with pytest.raises(ContributionError) as caught:
            check_share(wrong)
        assert caught.value.code == "share"


def test_the_prime_is_one():
    """Lucas and Lehmer's test of 2^521 - 1."""
    s = 4
    for _ in range(519):
        s = (s * s - 2) % PRIME
    assert s == 0
