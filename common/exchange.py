"""What server and site say to each other: questions and their answers.

    Hello        -> Roster        who are you, and how many cases do you have
    TrainOrder   -> Update        train from this model; what changed
    JudgeOrder   -> Judgement     how good is this model on your patients

Where the plan has secure aggregation, no Update leaves, and there are besides:

    KeysOrder    -> RoundKeys     make keys for this round, with these sites
    SharesOrder  -> SealedShares  here are all keys; share your secrets out
    TrainOrder   -> MaskedUpdate  with the shares that are meant for this site
    OpenOrder    -> Opening       these sites are in the sum; open it

That is the whole narrow interface of a site (`client.service.SiteService`, and
`client.masking` for the masks): order in, answer out. Orders name run, plan and round,
so that a site can refuse what it did not approve, and the site state to begin from, so
that a repeated round starts where the first try did. Each order has a nonce of its own,
which the answer's seal repeats (`common.signing`), so that no answer counts for another
order. Answers hold numbers only, but for the site's name, version, keys and shares.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, UInt16, UInt32

from common.contract import CONTRACT, FEDCT

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What the id of a run may be; sites keep their memory of it under this name."""

Part = Literal["validation", "test"]
"""Which held-out patients a model is judged on."""


def fresh_nonce() -> str:
    """16 random bytes from the operating system, hexadecimal."""
    return secrets.token_hex(16)


@dataclass(frozen=True, eq=False)
class Hello:
    """The server's first question, once per run."""

    run: str
    """Id of the run."""
    plan_digest: str
    """Canonical hash of the plan; a site refuses one that it did not approve."""
    plan_toml: str
    """The plan itself, without `[simulation]`, for a site that has not seen it yet."""
    layout_digest: str
    """`Layout.digest` of the model on the server."""
    sites: Mapping[str, str] = field(default_factory=dict)
    """All sites of the run to their verifying keys, 64 hexadecimal digits; each site
    puts them before its engineer. Empty in a rehearsal, which has no register."""
    nonce: str = field(default_factory=fresh_nonce)
    """Random, and new for every order."""
    contract: int = CONTRACT
    """What the hub speaks."""
    fedct: str = FEDCT
    """The hub's FedCT version."""


@dataclass(frozen=True, eq=False)
class Roster:
    """A site's introduction."""

    site: str
    """Name of the site."""
    train: int
    """Training cases."""
    validation: int
    """Validation cases."""
    test: int
    """Test cases."""
    accepted: int
    """N: image series that intake accepted."""
    found: int
    """M: image series that intake found."""
    key: str | None = None
    """The site's verifying key (`signing.public_text`); unset until it is sealed."""
    contract: int = CONTRACT
    """What the site speaks."""
    fedct: str = FEDCT
    """The site's FedCT version."""


@dataclass(frozen=True, eq=False)
class TrainOrder:
    """Train for one round."""

    run: str
    """Id of the run."""
    plan_digest: str
    """Canonical hash of the plan."""
    round: int
    """From 1."""
    state_round: int
    """The last round of this site that counted; training goes on from its state, unless
    `lineage` says to begin anew. 0: there is none."""
    model: Float32[np.ndarray, " P"]
    """Global parameters to start from."""
    model_digest: str
    """`digest_of(model)`, so that a site notices another model than its peers'."""
    control: Float32[np.ndarray, " P"] | None = None
    """SCAFFOLD's server control variate c."""
    sealed: Mapping[str, bytes] = field(default_factory=dict)
    """Sender to the share sealed for this site (`common.secagg`). Where there are any,
    the update leaves under masks; in the clear otherwise."""
    lineage: str = ""
    """Under masks: lineage of the optimiser's memory at `state_round`
    (`secagg.lineage`), the same at all sites of the round; empty: all begin anew."""
    nonce: str = field(default_factory=fresh_nonce)
    """Random, and new for every order."""


@dataclass(frozen=True, eq=False)
class Update:
    """What a site hands back after training."""

    site: str
    """Name of the site."""
    round: int
    """The order's round."""
    plan_digest: str
    """The order's plan."""
    delta: Float32[np.ndarray, " P"]
    """Local minus global parameters."""
    cases: int
    """Training cases: the weight in the mean."""
    loss: float | None
    """Mean training loss over the steps; unset with DP, which no noise would cover."""
    steps: int
    """Optimiser steps taken."""
    train_s: float
    """Seconds spent in optimiser steps."""
    accepted: int
    """N of the site's intake."""
    found: int
    """M of the site's intake."""
    control_delta: Float32[np.ndarray, " P"] | None = None
    """SCAFFOLD: new minus old control variate of the site."""
    epsilon_pld: float | None = None
    """With DP: what the run has cost each training patient here so far, at the plan's
    delta, by privacy loss distributions; rounded up to a tenth."""
    epsilon_prv: float | None = None
    """The same by the PRV accountant."""


@dataclass(frozen=True, eq=False)
class JudgeOrder:
    """Judge a model on held-out patients."""

    run: str
    """Id of the run."""
    plan_digest: str
    """Canonical hash of the plan."""
    round: int
    """Round of the model."""
    state_round: int
    """Last round of this site that counted (its local norm layers, FedBN); 0: none."""
    part: Part
    """Which patients."""
    model: Float32[np.ndarray, " P"]
    """Parameters to judge."""
    model_digest: str
    """`digest_of(model)`, which the site signs with its sums."""
    nonce: str = field(default_factory=fresh_nonce)
    """Random, and new for every order."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """Additive sums over a site's held-out cases (`common.task.Sums`)."""

    site: str
    """Name of the site."""
    round: int
    """The order's round."""
    part: Part
    """The order's part."""
    sums: Mapping[str, Float64[np.ndarray, " N"]]
    """Name to additive vector; empty when the site has no such cases."""


# --- secure aggregation -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KeysOrder:
    """Make keys for a round; the first turn of a set-up."""

    run: str
    """Id of the run."""
    plan_digest: str
    """Canonical hash of the plan."""
    round: int
    """The round that they are for."""
    members: Mapping[str, str]
    """The roster: site to verifying key, 64 hexadecimal digits."""
    weight_cap: int
    """Largest weight of a site."""
    size: int
    """P, the length of an update."""
    slots: int
    """Sites of the run: sums have room for all of them."""
    nonce: str = field(default_factory=fresh_nonce)
    """Random, and new for every order."""


@dataclass(frozen=True, eq=False)
class RoundKeys:
    """A site's keys of a round."""

    site: str
    """Name of the site."""
    round: int
    """The order's round."""
    keys: bytes
    """`secagg.keys.Announcement.pack`."""


@dataclass(frozen=True, eq=False)
class SharesOrder:
    """Share the secrets of a round out; the second turn of a set-up."""

    run: str
    """Id of the run."""
    plan_digest: str
    """Canonical hash of the plan."""
    round: int
    """The round that they are for."""
    keys: Mapping[str, bytes]
    """Site to `RoundKeys.keys`, of all who take part."""
    nonce: str = field(default_factory=fresh_nonce)
    """Random, and new for every order."""


@dataclass(frozen=True, eq=False)
class SealedShares:
    """A site's shares, each sealed for its receiver; the server can open none."""

    site: str
    """Name of the site."""
    round: int
    """The order's round."""
    sealed: Mapping[str, bytes]
    """Receiver to sealed share."""


@dataclass(frozen=True, eq=False)
class MaskedUpdate:
    """What a site hands back after training, under masks."""

    site: str
    """Name of the site."""
    round: int
    """The order's round."""
    plan_digest: str
    """The order's plan."""
    masked: UInt32[np.ndarray, " L"] | UInt16[np.ndarray, " L"]
    """Update and weight in fixed point, plus masks (`secagg.fixed_point`)."""
    loss: float | None
    """Mean training loss over the steps; unset with DP, which no noise would cover."""
    steps: int
    """Optimiser steps taken."""
    train_s: float
    """Seconds spent in optimiser steps."""
    accepted: int
    """N of the site's intake."""
    found: int
    """M of the site's intake."""
    next_keys: bytes
    """Its keys of the next round, in case the same sites go on."""
    epsilon_pld: float | None = None
    """As in `Update`."""
    epsilon_prv: float | None = None
    """As in `Update`."""


@dataclass(frozen=True, eq=False)
class OpenOrder:
    """Help to open the sum of a round, and get ready for the next."""

    run: str
    """Id of the run."""
    plan_digest: str
    """Canonical hash of the plan."""
    round: int
    """The round whose sum is meant."""
    survivors: tuple[str, ...]
    """Sites whose masked updates are in the sum."""
    agreed: Mapping[str, bytes] = field(default_factory=dict)
    """Site to its signature under the survivors. Needed where they are not all who
    took part: a site first signs what it was told, then sees that others were told the
    same, and only then releases anything."""
    next_keys: Mapping[str, bytes] = field(default_factory=dict)
    """Site to `MaskedUpdate.next_keys`; empty where the next round is set up anew."""
    nonce: str = field(default_factory=fresh_nonce)
    """Random, and new for every order."""


@dataclass(frozen=True, eq=False)
class Opening:
    """A site's part in opening a sum: its word first, or its shares."""

    site: str
    """Name of the site."""
    round: int
    """The order's round."""
    agreement: bytes = b""
    """Its signature under the survivors; empty where shares stand."""
    shares: Mapping[str, bytes] = field(default_factory=dict)
    """Site to a share of its seed or of its mask key, never both; empty where the
    signature stands."""
    sealed: Mapping[str, bytes] = field(default_factory=dict)
    """Receiver to sealed share for the next round, if its keys came along."""


Order = Hello | TrainOrder | JudgeOrder | KeysOrder | SharesOrder | OpenOrder
Answer = Roster | Update | Judgement | RoundKeys | SealedShares | MaskedUpdate | Opening
