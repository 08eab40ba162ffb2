"""Who takes part: the sites as the roll call found them, and the arms of a run."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid
from jaxtyping import Float32
from torch import nn

from common.exchange import Hello, Judgement, JudgeOrder, Part, Roster
from common.networks import build_network
from common.parameters import Layout, digest_of, layout_of
from common.plan import Plan
from common.plan_file import plan_toml
from common.plan_privacy import is_masked, quorum
from common.signing import public_text
from common.task import Sums, Task, add_sums
from common.tasks.catalog import task_of
from server.admission import Admission, Waiting, admit
from server.asking import Line, ask, roll_call
from server.presence import Presence
from server.verifying import Keys, Note, Verifier

log = logging.getLogger("fedct.run")

FEDERATED = "federated"
"""Name of the arm that is no baseline."""


Wire = Callable[[], Mapping[str, tuple[int, int]]]
"""Site to the bytes that passed down to it and up from it since the last call."""


@dataclass(frozen=True)
class Federation:
    """The sites of a run."""

    line: Line
    """The way to them."""
    node_of: Mapping[str, int]
    """Site to node id; grows when a site joins late."""
    rosters: Mapping[str, Roster]
    """Site to its introduction."""
    admission: Admission | None = None
    """Lets sites in while the run goes on; unset in a rehearsal."""
    wire: Wire | None = None
    """Counts bytes; unset where there is no wire, as in a rehearsal."""

    def let_in(self) -> None:
        """Look whether a site has come since; returns at once."""
        if self.admission is not None:
            self.admission.step()

    def passed(self) -> Mapping[str, tuple[int, int]]:
        """What passed on the wire since the last call; nothing if there is no wire."""
        return {} if self.wire is None else self.wire()


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
    """Sites on whose test patients the final model is judged."""
    folder: Path
    """Holds this arm's `journal.sqlite` and `checkpoints/`."""
    run: str
    """Id under which sites keep their memory of this arm."""

    @property
    def task(self) -> Task:
        """The plan's task."""
        return task_of(self.plan)

    @property
    def is_masked(self) -> bool:
        """Whether updates leave under masks.

        Never in a baseline, where one site (or all in one) trains alone: baselines
        exist in rehearsals only.
        """
        plan, sites = self.plan, len(self.train)
        return self.name == FEDERATED and is_masked(
            plan.privacy, plan.federation, sites
        )

    @property
    def min_sites(self) -> int:
        """The plan's quorum; for a baseline that trains fewer sites, all of them."""
        plan, sites = self.plan, len(self.train)
        if self.is_masked:
            return quorum(plan.privacy, plan.federation, sites)
        return min(plan.federation.min_sites, sites)


def open_federation(
    grid: Grid,
    arm: Arm,
    keys: Keys | None = None,
    tell: Callable[[Waiting], None] = lambda waiting: None,
    note: Note = lambda site, mark: None,
) -> Federation:
    """Call the roll; every site must hold this plan and this model.

    Args:
        grid: Flower's grid, of any engine.
        arm: What is to be run.
        keys: Verifying keys of the enrolled sites. Unset in a rehearsal: there the key
            that a site shows now holds for the run, and all nodes must answer.
        tell: Hears, while sites are waited for, who is missing and why.
        note: Hears how far a site's audit log is; not called in a rehearsal.
    """
    plan = arm.plan
    text = plan_toml(plan, with_simulation=False)
    sites = {site: public_text(key) for site, key in sorted((keys or {}).items())}
    hello = Hello(arm.run, plan.digest, text, plan_layout(plan).digest, sites)
    federation = plan.federation
    if keys is None:
        line = Line(grid, Verifier(), Presence(grid))
        return Federation(line, *roll_call(line, hello, federation.deadline_s))
    line = Line(grid, Verifier(keys, note), Presence(grid, federation.rejoin_s))
    admission = Admission(line, hello, arm.train)
    admit(admission, enough=arm.min_sites, join_s=federation.join_s, tell=tell)
    return Federation(line, admission.node_of, admission.rosters, admission)


def plan_layout(plan: Plan) -> Layout:
    """The layout of the plan's network, of which nothing is computed or kept."""
    with torch.device("meta"):
        return first_model(plan)[1]


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
    """The sites' sums for a model.

    Left out is who does not answer, has no case, or tells what the task can't read.

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
    total: Sums = {}
    for reply in ask(
        federation.line,
        federation.node_of,
        orders,
        Judgement,
        arm.plan.federation.deadline_s,
    ):
        if reply.answer is None:
            extra = {"arm": arm.name, "site": reply.site, "why": reply.reason}
            log.warning("not judged", extra=extra)
        elif (told := reply.answer.sums) and not _fits(arm.task, told, total):
            why = "its sums are not those of this task"
            log.warning(
                "refused", extra={"arm": arm.name, "site": reply.site, "why": why}
            )
        elif told:
            sums[reply.site], total = told, add_sums(total, told)
    return sums


def _fits(task: Task, sums: Sums, total: Sums) -> bool:
    """Whether the task can read a site's sums, alone and with those of the others."""
    if not all(vector.size for vector in sums.values()):
        return False
    try:
        task.summarise(sums)
        task.summarise(add_sums(total, sums))
    except (LookupError, ValueError):
        return False
    return True
