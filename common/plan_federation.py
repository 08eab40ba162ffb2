"""`[federation]`: rounds, who counts how much, and what the updates are made into.

A mean believes every site. The other rules of `aggregation` bear with some sites that
are broken or hostile; they have to see each update by itself.
"""

from typing import Final, Literal

from pydantic import Field

from common.plan_section import Count, NotNegative, Positive, Section

Aggregation = Literal[
    "mean",
    "clipped_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
]
"""Rules that make one update of those of the sites."""


class Federation(Section):
    """`[federation]`: rounds, who counts how much, and when a round is void."""

    rounds: Count
    """Rounds at the most."""
    algorithm: Literal[
        "fedavg", "fedprox", "fedavgm", "fedadam", "fedbn", "scaffold"
    ] = "fedavg"
    """FedAvg (McMahan 2017), FedProx (Li 2020), server momentum (Hsu 2019), server Adam
    (Reddi 2021), FedBN (Li 2021), SCAFFOLD (Karimireddy 2020)."""
    aggregation: Aggregation = "mean"
    """What the sites' updates are made into. All but the mean bear with some broken or
    hostile sites; median, trimmed_mean, krum and multi_krum know no weights."""
    faulty_sites: int = Field(default=1, ge=0)
    """Sites that trimmed_mean, krum and multi_krum reckon with (f in the papers)."""
    clip_norm: Positive | None = None
    """clipped_mean: largest Euclidean norm of an update that counts in full; unset: the
    median norm of the last round that counted (in the first, of that round)."""
    krum_keep: Count | None = None
    """multi_krum: how many updates are averaged; unset, and at the most, the sites that
    replied less f + 2 (El Mhamdi 2019, arXiv 1905.04374)."""
    weights: Literal["cases", "uniform"] = "cases"
    """A site counts by its training cases, or all sites count the same."""
    weight_cap: Positive | None = None
    """Most cases a site may count for."""
    min_sites: Count = 2
    """Quorum: fewest accepted replies; below it the round is void."""
    deadline_s: Positive = 3600.0
    """A reply later than this is left out."""
    join_s: NotNegative = 60.0
    """How long a run waits for its other sites once the quorum is there."""
    rejoin_s: NotNegative = 120.0
    """How long a site that was lost is waited for; if it is back by then, it is asked
    again and the round loses nothing."""
    max_void_rounds: Count = 3
    """The run stops after so many void rounds in a row."""
    early_stop_rounds: Count | None = None
    """Stop when the monitored metric did not improve in so many evaluated rounds."""
    proximal_mu: NotNegative = 0.01
    """FedProx: weight of the pull towards the global model."""
    server_learning_rate: Positive = 1.0
    """Step of the server along the mean update (fedadam: try 0.01)."""
    server_momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """fedavgm: momentum. fedadam: beta 1."""


_NEEDED_BY_F: Final = {"trimmed_mean": (2, 1), "krum": (2, 3), "multi_krum": (2, 3)}
"""Rule to (a, b): with f faulty sites it needs a f + b replies."""


def replies_needed(federation: Federation) -> int:
    """Fewest replies of which the rule can make an update, for its f faulty sites.

    Trimmed mean: 2 f + 1, so that something is left (Yin 2018, definition 2). Krum: 2 f
    + 3 (Blanchard 2017, proposition 4.2). Median and geometric median bear with any
    number below a half, so they need three to bear with one.
    """
    if federation.aggregation in ("median", "geometric_median"):
        return 3
    times, more = _NEEDED_BY_F.get(federation.aggregation, (0, 1))
    return times * federation.faulty_sites + more


def federation_disagreements(federation: Federation) -> list[str]:
    """What the keys of `[federation]` do not allow together."""
    rule, said = federation.aggregation, []
    needed = replies_needed(federation)
    if federation.min_sites < needed:
        said.append(
            f"federation.min_sites {federation.min_sites} is too few for aggregation "
            f"{rule!r} with faulty_sites {federation.faulty_sites}, expected at least "
            f"{needed}"
        )
    if rule != "mean" and federation.algorithm == "scaffold":
        said.append(
            f"federation.aggregation {rule!r} does not fit algorithm 'scaffold', whose "
            "control variates are averaged; use another algorithm"
        )
    if federation.clip_norm is not None and rule != "clipped_mean":
        said.append(
            f"federation.clip_norm is for aggregation 'clipped_mean', not {rule!r}"
        )
    if federation.krum_keep is not None and rule != "multi_krum":
        said.append(
            f"federation.krum_keep is for aggregation 'multi_krum', not {rule!r}"
        )
    return said
