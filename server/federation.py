"""Who takes part: the sites as the roll call found them, and the arms of a run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from jaxtyping import Float32
from torch import nn

from common.exchange import Hello, Judgement, JudgeOrder, Part, Roster
from common.networks import build_network
from common.parameters import Layout, digest_of, layout_of
from common.plan import Plan
from common.plan_file import plan_toml
from common.task import Sums, Task
from common.tasks.catalog import task_of
from server.asking import ask, roll_call
from server.verifying import Keys, Verifier

log = logging.getLogger("fedct.run")


@dataclass(frozen=True)
class Federation:
    """The connected sites."""

    grid: Grid
    """Flower's grid, of any engine."""
    node_of: Mapping[str, int]
    """Site to node id."""
    rosters: Mapping[str, Roster]
    """Site to its introduction."""
    verifier: Verifier
    """Checks the seals of the sites' answers."""


@dataclass(frozen=True)
class Arm:
    """One way of training: federated, pooled, or one site alone."""

    name: str
    """"federated", "pooled" or "local-<site>"."""
    plan: Plan
    """The plan; the same for all arms of a run."""
    train: tuple[str, ...]
    """Sites that train, in the order in which replies are folded."""
    validate: tuple[str, ...]
    """Sites on whose validation patients the best round is picked."""
    test: tuple[str, ...]
    """Sites on whose test patients the best model is judged."""
    folder: Path
    """Holds this arm's `journal.sqlite` and `checkpoints/`."""
    run: str
    """Id under which sites keep their memory of this arm."""

    @property
    def task(self) -> Task:
        """The plan's task."""
        return task_of(self.plan)

    @property
    def min_sites(self) -> int:
        """The plan's quorum; for a baseline that trains fewer sites, all of them."""
        return min(self.plan.federation.min_sites, len(self.train))


def open_federation(
    grid: Grid, plan: Plan, run: str, keys: Keys | None = None
) -> Federation:
    """Call the roll; every node must hold this plan and this model.

    Args:
        grid: Flower's grid, of any engine.
        plan: The plan.
        run: Id of the run.
        keys: Verifying keys of the enrolled sites; unset in a rehearsal, where the key
            that a site shows now holds for the run.
    """
    text = plan_toml(plan, with_simulation=False)
    hello = Hello(run, plan.digest, text, first_model(plan)[1].digest)
    verifier = Verifier(keys)
    node_of, rosters = roll_call(grid, hello, plan.federation.deadline_s, verifier)
    return Federation(grid, node_of, rosters, verifier)


def first_model(plan: Plan) -> tuple[nn.Module, Layout]:
    """The network that every side builds from the plan, and its layout."""
    network = build_network(plan, task_of(plan).out_channels, plan.plan.seed)
    local = plan.federation.algorithm == "fedbn"
    return network, layout_of(network, keep_norms_local=local)


def judge(
    federation: Federation,
    arm: Arm,
    sites: tuple[str, ...],
    model: Float32[np.ndarray, " P"],
    number: int,
    since: Mapping[str, int],
    part: Part,
) -> dict[str, Sums]:
    """The sites' sums for a model; one that does not answer or has no case is left out.

    Args:
        federation: The sites.
        arm: Gives plan and run.
        sites: Who judges.
        model: Parameters to judge.
        number: Round of the model.
        since: Site to its last round that counted.
        part: Which patients.
    """
    digest = digest_of(model)
    orders = {
        site: JudgeOrder(
            arm.run, arm.plan.digest, number, since.get(site, 0), part, model, digest
        )
        for site in sites
    }
    sums: dict[str, Sums] = {}
    for reply in ask(
        federation.grid,
        federation.node_of,
        orders,
        Judgement,
        arm.plan.federation.deadline_s,
        federation.verifier,
    ):
        if reply.answer is None:
            extra = {"arm": arm.name, "site": reply.site, "why": reply.reason}
            log.warning("not judged", extra=extra)
        elif reply.answer.sums:
            sums[reply.site] = reply.answer.sums
    return sums
