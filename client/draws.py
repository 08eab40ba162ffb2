"""What a site draws by chance, where nobody else may foretell it.

Such draws are: which cases a step takes, where its patches lie, how they are turned,
how an update is rounded under masks. Who knows a site's draws can pick its part out of
a sum, by what it alone can have sent, or over many rounds by who saw which case when.
And two plans that differ in their description alone would have equal updates, so that a
second run with a site fewer told that site's. So a hospital's draws follow from its
signing key, the plan's digest and the round: what is asked again is answered alike, and
nobody else knows how.

In a simulation training draws from the plan's seed, and rounding from a key that
follows from it (`client.site`): the same plan gives the same model.

Not covered here: noise and sampling under DP (`client.secret_random`), which are drawn
anew each time. `plan_seed` by itself, by which models are judged, is no secret.
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.secret_random import KEY_BYTES, SecretStream
from common.canonical import items
from common.plan import Plan
from common.secagg.fixed_point import Draw


def training_seed(
    plan: Plan, site: str, identity: Ed25519PrivateKey | None, number: int
) -> np.random.SeedSequence:
    """What a round's training draws from.

    Args:
        plan: The plan.
        site: Name of the site.
        identity: A hospital's key; unset in a rehearsal.
        number: The round.
    """
    if identity is None:
        return plan_seed(plan, site, "train", number)
    return np.random.SeedSequence(
        int.from_bytes(_derived(identity, "training", plan.digest, number))
    )


def plan_seed(
    plan: Plan, site: str, purpose: str, number: int
) -> np.random.SeedSequence:
    """A seed that depends on plan, site, purpose and number, and nothing else."""
    text = f"{plan.plan.seed}/{site}/{purpose}/{number}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.SeedSequence(int.from_bytes(digest[:16]))


def secret_rounding(identity: Ed25519PrivateKey, digest: str, number: int) -> Draw:
    """What an update is rounded by under masks, by a plan of this digest in a round."""
    return SecretStream(_derived(identity, "rounding", digest, number)).fractions


def _derived(
    identity: Ed25519PrivateKey, purpose: str, digest: str, number: int
) -> bytes:
    """A key that follows from a site's own (HKDF, RFC 5869)."""
    info = items({"purpose": f"fedct {purpose}", "plan": digest, "round": number})
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(identity.private_bytes_raw())
