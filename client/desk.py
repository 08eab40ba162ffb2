"""The desk of a hospital's engineer: which plans are approved, and whether to pause.

A decision holds from the moment it is on the disk (`client.desk_file`), through crashes
and restarts, and can be read without a running service.

Plans come from the server and are believed in nothing: they are bounded, parsed, and
written anew from what was understood; the digest is ours. Approving a plan with masks
confirms the sites that stand beside it (`client.plan_sites`).

Not covered here: who may decide. That is whoever can write in the site's folder.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from client.desk_file import (
    PLANS,
    Desk,
    PauseNote,
    PlanEntry,
    PlanState,
    editing,
    read_desk,
    write_desk,
    write_plan,
)
from client.peers import confirm_peers
from client.plan_sites import (
    Sites,
    check_named,
    differences,
    may_be_masked,
    not_confirmed,
)
from client.policy import Policy, check_listed
from common.errors import PolicyError, StoreError, UsageError
from common.exchange import RUN_ID
from common.plan import Plan
from common.plan_file import load_plan, parse_plan

MOST_WAITING = 16
"""Plans that may wait at a time; bounds what a server can put on the disk."""
LARGEST_PLAN = 256 << 10
"""Bytes of a plan's text; the largest one written so far has 6 kB."""
SHORTEST_PREFIX = 8
"""Fewest digits of a digest by which a person may name a plan."""
_DIGITS = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}")

# --- what the resident service asks -------------------------------------------------


def queue_plan(
    folder: Path,
    plan_text: str,
    run: str,
    policy: Policy | None = None,
    sites: Sites = MappingProxyType({}),
) -> PlanEntry:
    """Put a plan before the engineer, unless it was there before.

    Args:
        folder: The site's folder.
        plan_text: The plan as TOML, from a server.
        run: Id of the run that wants it.
        policy: The hospital's; it may approve what it has not denied, or take no plan
            but those it lists. Unset: the engineer is asked.
        sites: Who takes part, as the hub names them. What waits keeps those it came
            with, so that nobody changes what the engineer looked at.

    Returns:
        Its entry, decided or not.

    Raises:
        PlanError: It is not a valid plan.
        PolicyError: It is far too long, too many plans wait, the run has no name, its
            sites are none, or the policy does not list it.
    """
    _check_sent(plan_text, run)
    plan, policy = parse_plan(plan_text), policy or Policy()
    check_listed(policy, plan)
    check_named(plan, sites)
    with editing(folder):
        desk = read_desk(folder)
        entry = _entry(desk, plan.digest)
        if entry is None:
            desk, entry = _queued(folder, desk, plan, run, sites)
        elif not entry.sites and may_be_masked(plan):  # queued by an older FedCT
            desk, entry = _changed(folder, desk, entry, sites=dict(sites))
        auto = policy.approve == "auto" or plan.digest in policy.plans
        if auto and entry.state == "waiting":
            _, entry = _changed(folder, desk, entry, **_now("approved"))
    return entry


def check_approved(folder: Path, digest: str) -> str:
    """Refuse an order whose plan is not approved; say when it was.

    Raises:
        PolicyError: It waits, was denied, or was never seen here.
    """
    entry = _entry(read_desk(folder), digest)
    if entry is None or entry.state != "approved":
        what = "never saw it" if entry is None else f"has it as {entry.state}"
        raise PolicyError(
            f"site got an order for plan {digest[:12]!r}, expected one that the "
            f"hospital approved (it {what}); its engineer decides, with `fedct client "
            "approve`",
            code="approval",
        )
    decided = entry.decided or entry.first_seen
    return f"approved {decided:%Y-%m-%d %H:%M} UTC"


def sites_of(folder: Path, digest: str) -> dict[str, str]:
    """Who takes part in a plan, as confirmed or as first named; none without masks."""
    entry = _entry(read_desk(folder), digest)
    return {} if entry is None else entry.sites


def check_sites(folder: Path, plan: Plan, named: Sites) -> None:
    """Refuse sites that an approved plan is not for, and put them before the engineer.

    Args:
        folder: The site's folder.
        plan: The plan, an approved one.
        named: Who takes part, as a hub names them: all sites of a run.

    Raises:
        PolicyError: They differ; `code` is "roster".
    """
    if not may_be_masked(plan):
        return
    check_named(plan, named)
    with editing(folder):
        desk = read_desk(folder)
        entry = _entry(desk, plan.digest)
        assert entry is not None  # or the plan would not be approved
        said = differences(plan, entry.sites, named, is_confirmed=entry.are_confirmed)
        if said and not entry.changed:
            _changed(folder, desk, entry, changed=dict(named))
        elif not said and not named.items() <= entry.sites.items():
            _changed(folder, desk, entry, sites={**entry.sites, **named})
    if said:
        raise not_confirmed(said)


def check_open(folder: Path) -> None:
    """Refuse an order while the site is paused.

    Raises:
        PolicyError: It is paused; the reason stays at the site.
    """
    pause = read_desk(folder).pause
    if pause is not None:
        raise PolicyError(
            f"site is paused by its engineer since {pause.since:%Y-%m-%d %H:%M} UTC; "
            "it takes no orders until it is resumed there",
            code="paused",
        )


def plan_of(folder: Path, digest: str) -> Plan:
    """A plan that was queued here.

    Raises:
        StoreError: There is none, or its file is no longer the plan of this digest.
    """
    if _entry(read_desk(folder), digest) is None:
        raise StoreError(f"site never saw plan {digest[:12]!r}, expected one it knows")
    plan = load_plan(folder / PLANS / f"{digest}.toml")
    if plan.digest != digest:
        raise StoreError(
            f"site has a file for plan {digest[:12]} that is now plan "
            f"{plan.digest[:12]}, expected it as it was queued; put it back from a "
            "backup, or have the plan sent and approved again"
        )
    return plan


# --- what the engineer decides ------------------------------------------------------


def decide(
    folder: Path, prefix: str, state: Literal["approved", "denied"]
) -> PlanEntry:
    """Approve or deny a plan; denying an approved one takes the approval back.

    Approving confirms its sites: those that changed since, if there are any.

    Args:
        folder: The site's folder.
        prefix: Its digest, or the first digits of it, if they are unique.
        state: What it shall be.

    Raises:
        UsageError: No plan, or more than one, has such a digest; or the hub has not
            said yet who takes part.
        StoreError: The plan's file is not what was queued; nothing was decided.
    """
    with editing(folder):
        desk = read_desk(folder)
        entry = _named(desk, prefix.strip().lower())
        plan = plan_of(folder, entry.digest)  # what is decided on is what was queued
        if state == "denied":
            return _changed(folder, desk, entry, changed={}, **_now(state))[1]
        sites = entry.changed or entry.sites
        if may_be_masked(plan):
            if not sites:
                raise UsageError(
                    f"plan {entry.digest[:12]} came from a hub that did not name its "
                    "sites, expected them; it names them when it asks again"
                )
            confirm_peers(folder, sites)
        confirmed = {"sites": sites, "are_confirmed": bool(sites), "changed": {}}
        return _changed(folder, desk, entry, **confirmed, **_now(state))[1]


def pause(folder: Path, reason: str) -> PauseNote:
    """Take no further orders, from now on and after a restart."""
    with editing(folder):
        desk = read_desk(folder)
        since = datetime.now(UTC) if desk.pause is None else desk.pause.since
        note = PauseNote(since=since, reason=reason)
        write_desk(folder, desk.model_copy(update={"pause": note}))
    return note


def resume(folder: Path) -> bool:
    """Take orders again; whether the site was paused."""
    with editing(folder):
        desk = read_desk(folder)
        if desk.pause is not None:
            write_desk(folder, desk.model_copy(update={"pause": None}))
    return desk.pause is not None


def _check_sent(plan_text: str, run: str) -> None:
    """Refuse what is too long to be a plan, and a run without a name."""
    if len(plan_text.encode("utf-8", "replace")) > LARGEST_PLAN:
        raise PolicyError(
            f"site was sent a plan of {len(plan_text)} characters, expected at most "
            f"{LARGEST_PLAN} bytes; nothing was queued",
            code="queue",
        )
    if not RUN_ID.fullmatch(run):
        raise PolicyError(
            "site was sent a plan by a run whose id is no plain name, expected up to "
            "64 letters, digits, dots, hyphens and underscores; nothing was queued",
            code="queue",
        )


def _queued(
    folder: Path, desk: Desk, plan: Plan, run: str, sites: Sites
) -> tuple[Desk, PlanEntry]:
    """Write a plan that was never seen here, and the desk with it waiting."""
    if sum(known.state == "waiting" for known in desk.plans) >= MOST_WAITING:
        raise PolicyError(
            f"site has {MOST_WAITING} plans waiting already, expected fewer; the "
            "hospital's engineer has to approve or deny some first",
            code="queue",
        )
    write_plan(folder, plan)
    entry = PlanEntry(
        digest=plan.digest,
        state="waiting",
        first_seen=datetime.now(UTC),
        run=run,
        sites=dict(sites) if may_be_masked(plan) else {},
    )
    desk = desk.model_copy(update={"plans": (*desk.plans, entry)})
    write_desk(folder, desk)
    return desk, entry


def _entry(desk: Desk, digest: str) -> PlanEntry | None:
    return next((entry for entry in desk.plans if entry.digest == digest), None)


def _named(desk: Desk, prefix: str) -> PlanEntry:
    if not _DIGITS.fullmatch(prefix):
        raise UsageError(
            f"plan was named {prefix[:64]!r}, expected its digest, or at least "
            f"{SHORTEST_PREFIX} hexadecimal digits of it"
        )
    found = [entry for entry in desk.plans if entry.digest.startswith(prefix)]
    if len(found) != 1:
        who = f"{len(found)} plans" if found else "no plan"
        raise UsageError(
            f"hash {prefix!r} is the beginning of {who} here, expected that of one; "
            f"`fedct client approve --all` lists the {len(desk.plans)} seen here"
        )
    return found[0]


def _now(state: PlanState) -> dict[str, object]:
    return {"state": state, "decided": datetime.now(UTC)}


def _changed(
    folder: Path, desk: Desk, entry: PlanEntry, **changes: object
) -> tuple[Desk, PlanEntry]:
    """Write the desk with one entry changed."""
    changed = entry.model_copy(update=changes)
    plans = tuple(changed if known is entry else known for known in desk.plans)
    desk = desk.model_copy(update={"plans": plans})
    write_desk(folder, desk)
    return desk, changed
