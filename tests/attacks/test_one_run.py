"""The DP step of the sites' training, audited in one run; the bug is the control."""

import numpy as np
import pytest

from common.accounting import NoisySteps, noise_for
from deploy.dp_audit import audit_dp, canary_scores
from tests.attacks.rows import row

DELTA = 1e-5


@row(
    "reader of the model",
    "one-run audit of the DP step (Steinke 2023), 1,000 canaries",
    "DP-SGD by patient",
    short=True,
)
@pytest.mark.parametrize("claim", [2.0, 4.0])
def test_the_claim_stands_and_a_tenth_of_the_noise_is_found(told, claim):
    noise = noise_for(claim, DELTA, 1.0, 1)
    audited = audit_dp(NoisySteps(1.0, noise, 1), DELTA)
    told(
        f"claimed {audited.claimed:.1f}, planted bug (noise / 10) audits at "
        f"{audited.bound_with_bug:.2f}",
        f"claimed {audited.claimed:.1f}, audits at {audited.bound:.2f}",
    )
    assert audited.bound <= audited.claimed
    assert audited.bound_with_bug > audited.claimed


@row(
    "reader of the model",
    "the same over many steps with drawn patients",
    "DP-SGD by patient",
)
@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.1, 1.5, 100), (0.04, 1, 250)])
def test_the_claim_stands_over_drawn_steps(told, rate, noise, steps):
    audited = audit_dp(NoisySteps(rate, noise, steps), DELTA)
    told(
        f"claimed {audited.claimed:.1f}, planted bug audits at "
        f"{audited.bound_with_bug:.2f}",
        f"claimed {audited.claimed:.1f}, audits at {audited.bound:.2f}",
    )
    assert audited.bound <= audited.claimed
    assert audited.bound_with_bug > audited.claimed
    assert audited.bound > 0


def test_a_canary_shows_as_loudly_as_the_clip_lets_it():
    """Without noise to speak of, each one inside moves its weight by clip over n."""
    inside = np.arange(20) < 10
    scores = canary_scores(inside, 1.0, 1e-6, 1)
    assert np.allclose(scores[:10], 0.1, rtol=1e-3)
    assert np.abs(scores[10:]).max() < 1e-5
