"""What a run leaves to be read: the documented, versioned schema of `report.json`.

The HTML report is drawn from this record alone, so whatever it shows can be read by a
program too. Numbers and site names only: no patient, no UID, no path. The JSON schema
is printed by `fedct report --schema`.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

RECORD_VERSION: Final = 1

Metrics = dict[str, float]
"""Metric name to value, as `Task.summarise` gives them."""


class Record(BaseModel):
    """A frozen part of the report."""

    # A metric may be undefined: JSON has no NaN, so it is written as the text "NaN".
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class SiteRound(Record):
    """What one site did in one round."""

    site: str
    """Name of the site."""
    outcome: Literal["accepted", "refused", "failed", "late"]
    """Whether its update went into the mean."""
    reason: str = ""
    """Why not, when it did not."""
    cases: int = 0
    """Training cases as told: its weight before cap."""
    weight: float = 0.0
    """Share of the mean, 0 to 1."""
    accepted: int = 0
    """N: image series that intake accepted, as told."""
    found: int = 0
    """M: image series that intake found, as told."""
    loss: float | None = None
    """Mean training loss over the round's steps; unset with DP."""
    epsilon_pld: float | None = None
    """With DP: what the run cost each of the site's training patients up to here, by
    privacy loss distributions (dp-accounting); rounded up to a tenth."""
    epsilon_prv: float | None = None
    """The same by the PRV accountant (Opacus)."""
    steps: int = 0
    """Optimiser steps taken, as told."""
    update_norm: float | None = None
    """Euclidean norm of the update."""
    train_s: float = 0.0
    """Seconds in optimiser steps at the site."""
    bytes_down: int = 0
    """Bytes of the order's vectors, without headers."""
    bytes_up: int = 0
    """Bytes of the reply's vectors, without headers."""
    wire_bytes_down: int | None = None
    """Bytes of HTTP that the hub sent to the site during the round."""
    wire_bytes_up: int | None = None
    """Bytes of HTTP that the hub got from the site during the round."""


class RoundRecord(Record):
    """One round: a transaction of the journal."""

    number: int
    """From 1."""
    outcome: Literal["closed", "void"]
    """Void: below quorum, or the sum of the masked updates did not open; the model did
    not change."""
    reason: str = ""
    """Why it is void; empty when it closed."""
    updates: Literal["in the clear", "under masks"] = "in the clear"
    """What the server got to see of each site's update; under masks it learnt their sum
    alone."""
    lineage: str = ""
    """Under masks: digest of the rounds and models that the optimisers of the sites in
    the sum stem from; empty if there was no sum."""
    began_anew: bool | None = None
    """Under masks: whether the sites' optimisers began without memory, as in the first
    round and wherever a site takes part that was not in the last sum."""
    weight_cap: int | None = None
    """Under masks: the largest weight of a site, which the sums had room for."""
    sites: list[SiteRound]
    """In the order of the plan's sites."""
    validation: dict[str, Metrics] = {}
    """Site to metrics of the new global model on that site's validation patients."""
    validation_mean: Metrics = {}
    """Unweighted mean over the sites."""
    model_digest: str
    """sha256 of the global parameters after the round."""
    seconds: float
    """Wall time of the round, evaluation included."""


class ArmRecord(Record):
    """One way of training: federated, pooled, or one site alone."""

    name: str
    """"federated", "pooled" or "local-<site>"."""
    rounds: list[RoundRecord]
    """All rounds."""
    final_round: int
    """Round of the model that is tested, and, of the federated arm, handed out unless
    `no_model` says otherwise; 0: none."""
    stopped: Literal["all rounds", "early stop", "void rounds"]
    """Why the run ended."""
    steps: int
    """Optimiser steps in all, over all sites."""
    test: dict[str, Metrics]
    """Site to metrics of the final model on that site's test patients."""
    test_mean: Metrics
    """Unweighted mean over the sites: each hospital counts the same."""
    test_pooled: Metrics
    """Metrics over all test cases: each case counts the same."""
    public: Metrics = {}
    """Metrics on the server's public cases, when the plan has them."""
    seconds: float
    """Wall time of its rounds, added up; the test at the end is not in it."""


class SiteRecord(Record):
    """One hospital as the report may show it.

    Its numbers are those it told: in a real federation to the nearest ten and at least
    ten, unless the hospital's policy says otherwise.
    """

    name: str
    """Name of the site."""
    accepted: int
    """N of the intake."""
    found: int
    """M of the intake."""
    codes: dict[str, int]
    """Verdict code to number of series (simulation only; stays local otherwise)."""
    train: int
    """Training cases."""
    validation: int
    """Validation cases."""
    test: int
    """Test cases."""


class Picture(Record):
    """An example slice of a phantom or public case."""

    caption: str
    """What it shows."""
    png_base64: str
    """The picture, PNG, base64."""


class RunRecord(Record):
    """A whole run: the content of `report.json`."""

    record_version: Literal[1] = RECORD_VERSION
    name: str
    """`plan.name`."""
    description: str
    """`plan.description`."""
    task: Literal["segmentation", "classification"]
    monitor: str
    """Metric that picked the model, unless the plan takes that of the last round."""
    class_names: list[str]
    plan_digest: str
    """Canonical hash of the plan."""
    plan_toml: str
    """The effective plan, without `[simulation]` and its paths."""
    engine: str
    """"in-process", "ray" or "deployment"."""
    started: str
    """ISO 8601, UTC."""
    finished: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time of all rounds of all arms, and of intake where it is known."""
    intake_s: float | None
    """Wall time of intake; unset in a real federation, where hospitals do it."""
    peak_memory_bytes: int
    """Peak resident memory of the process that ran the rounds; in a real federation
    the hub's."""
    parameters: int
    """Number of parameters that travel."""
    sites: list[SiteRecord]
    arms: list[ArmRecord]
    """Federated first."""
    no_model: str = ""
    """Why no model is handed out; empty: one is."""
    pictures: list[Picture] = []
    versions: dict[str, str]
    """Package to version."""
    device: str
    """What trained: "cpu (2 threads, 4 cores)", or the GPU's name."""
