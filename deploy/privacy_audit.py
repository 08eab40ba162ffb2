"""The privacy record of a finished run, and the gate in front of its model.

What was on is read off the run's own record, not off the plan: rounds say themselves
whether updates were masked, sites what their DP has cost. Membership inference needs
the patients, so it is measured in a rehearsal only.

Not covered here: stronger attacks than the loss. They are in `make attacks`, on models
of their own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from client.open_site import choose_device, open_cases
from client.site import SITE_FILE
from client.train import steps_per_round
from common.accounting import NoisySteps, cost_of, noise_for
from common.case import PreparedCase
from common.durable import write_whole
from common.errors import ReleaseError
from common.membership import at_most, membership_of
from common.parameters import digest_of, load_vector
from common.plan import Plan
from common.plan_dp import PatientPrivacy
from common.plan_release import Release
from common.sources import POOLED, PUBLIC
from common.tasks.catalog import task_of
from deploy.dp_audit import audit_dp
from deploy.finished_run import read_finished
from deploy.inversion_audit import MOST_SITES, Way, audit_inversion
from deploy.progress import tell_work
from deploy.run_folder import final_model
from server.federation import first_model
from server.privacy_record import (
    DpRecord,
    InversionRecord,
    MembershipRecord,
    OneRunRecord,
    PrivacyRecord,
    SiteShare,
)
from server.record import ArmRecord, RoundRecord, SiteRound
from server.told_cost import range_of, told_by

PRIVACY_FILE = "privacy.json"
MOST_CASES = 200
"""Training cases of a site that membership inference is tried on, the first ones."""


def audit_run(folder: Path, device: str = "auto") -> PrivacyRecord:
    """Audit a finished run and write its privacy record.

    Args:
        folder: The run folder.
        device: Where the model is tried on cases, in a rehearsal.

    Raises:
        RunError: The folder holds no finished run, or not as it was written; the record
            that was there stays.
    """
    plan, arm = read_finished(folder)
    record = record_of(folder, plan, arm, device, with_canaries=True)
    write_record(folder, record)
    return record


def check_release(folder: Path, plan: Plan, arm: ArmRecord) -> None:
    """Let a model pass the plan's gate, or not; a record says why.

    Raises:
        ReleaseError: It does not pass.
    """
    if plan.privacy.release is None:
        return
    record = record_of(folder, plan, arm, "auto", with_canaries=False)
    write_record(folder, record)
    if record.refused:
        raise ReleaseError(
            f"run {folder.name!r} hands out no model: {'; '.join(record.refused)}; "
            f"its {PRIVACY_FILE} says more"
        )


def write_record(folder: Path, record: PrivacyRecord) -> None:
    """Write the record into the run folder, and into the model that is there."""
    text = record.model_dump_json(indent=1) + "\n"
    write_whole(folder / PRIVACY_FILE, text.encode())
    copy_record(folder)


def copy_record(folder: Path) -> None:
    """Put the run's privacy record, where there is one, into its model."""
    if (folder / PRIVACY_FILE).exists() and (folder / "model").is_dir():
        content = (folder / PRIVACY_FILE).read_bytes()
        write_whole(folder / "model" / PRIVACY_FILE, content)


def record_of(
    folder: Path, plan: Plan, arm: ArmRecord, device: str, *, with_canaries: bool
) -> PrivacyRecord:
    """What is known of the run of this arm."""
    counted = [r for r in arm.rounds if r.outcome == "closed"]
    rows = [row for r in arm.rounds for row in r.sites]
    sites = sorted({row.site for row in rows})
    dp = _dp(plan, rows, sites)
    record = PrivacyRecord(
        plan_digest=plan.digest,
        model_digest=digest_of(final_model(folder)),
        masked_rounds=sum(r.updates == "under masks" for r in counted),
        rounds=len(counted),
        aggregation=plan.federation.aggregation,
        dp=dp,
        one_run=_one_run(plan, rows, dp) if with_canaries else None,
        membership=_membership(folder, plan, sites, device),
        inversion=_inversion(plan, counted, rows) if with_canaries else None,
        shares=[
            SiteShare(
                site=site,
                share=_tens(
                    [row.weight for r in counted for row in r.sites if row.site == site]
                ),
                epsilon=range_of(told_by(rows, site)),
            )
            for site in sites
        ],
        gated=plan.privacy.release is not None,
        refused=[],
    )
    release = plan.privacy.release
    refused = [] if release is None else refusals(record, release)
    return record.model_copy(update={"refused": refused})


def refusals(record: PrivacyRecord, release: Release) -> list[str]:
    """What of the gate a model fails; nothing: it may be handed out."""
    said = []
    if record.rounds < 1:
        said.append("no round counted, expected one")
    if release.under_masks and record.masked_rounds < record.rounds:
        said.append(
            f"{record.rounds - record.masked_rounds} of {record.rounds} rounds were in "
            "the clear, expected all under masks"
        )
    if release.max_epsilon is not None:
        epsilon = None if record.dp is None else record.dp.epsilon
        if epsilon is None or not epsilon <= release.max_epsilon:
            got = _untold(record) if epsilon is None else f"{epsilon:.1f}"
            said.append(f"epsilon is {got}, expected at most {release.max_epsilon:g}")
    if release.max_membership_auc is not None:
        limit = release.max_membership_auc
        if (auc := _too_well_told(record.membership, limit)) is not None:
            said.append(f"membership AUC is {auc}, expected at most {limit:g}")
    return said


def _untold(record: PrivacyRecord) -> str:
    """Whose figures can't be used, in words."""
    whose = [one for one in record.shares if not one.epsilon[:1].isdigit()]
    names = ", ".join(f"{one.site}: {one.epsilon}" for one in whose)
    names = f" ({names})" if names else ""
    return f"not told by every site with every update{names}"


def _too_well_told(got: MembershipRecord | None, limit: float) -> str | None:
    """The AUC in words, unless it is below the limit with what chance may hide."""
    if got is None:
        return "not measured"
    most = at_most(got.auc, got.members, got.others)
    if most <= limit:
        return None
    cases = f"{got.members} and {got.others} cases"
    return f"{got.auc:.3f}, which on {cases} leaves room for {most:.3f}"


def _dp(plan: Plan, rows: Sequence[SiteRound], sites: Sequence[str]) -> DpRecord | None:
    dp = plan.privacy.dp
    if dp is None:
        return None
    told = [told_by(rows, site) for site in sites]
    known = [pair for pair in told if not isinstance(pair, str)]
    whole = len(known) == len(told) > 0
    return DpRecord(
        delta=dp.delta,
        clip_norm=dp.clip_norm,
        epsilon_pld=max(pld for pld, _ in known) if whole else None,
        epsilon_prv=max(prv for _, prv in known) if whole else None,
    )


def _one_run(
    plan: Plan, rows: Sequence[SiteRound], dp: DpRecord | None
) -> OneRunRecord | None:
    """The audit at the chance and noise of the site whose patients paid most."""
    settings = plan.privacy.dp
    if settings is None or dp is None or dp.epsilon is None:
        return None
    paid = _paid_most(rows)
    rounds = sum(row.site == paid.site and row.epsilon_pld is not None for row in rows)
    patients, delta = max(1, paid.cases), settings.delta
    noise = _noise(plan, settings, patients)
    if settings.noise_multiplier is not None:
        patients = _fewest(
            lambda n: cost_of([_steps(plan, n, noise, rounds)], delta).epsilon,
            at_most=dp.epsilon,
            cases=patients,
        )
    audited = audit_dp(_steps(plan, patients, noise, rounds), delta)
    return OneRunRecord(
        claimed=audited.claimed,
        bound=audited.bound,
        bound_with_bug=audited.bound_with_bug,
        canaries=audited.canaries,
    )


def _paid_most(rows: Sequence[SiteRound]) -> SiteRound:
    """The row of the site whose patients paid most, of several the smallest."""
    return max(rows, key=lambda row: (row.epsilon_pld or 0.0, -row.cases))


def _noise(plan: Plan, dp: PatientPrivacy, patients: int) -> float:
    """The plan's noise multiplier, or what a site with so many patients computes."""
    if dp.noise_multiplier is not None:
        return dp.noise_multiplier
    assert dp.epsilon is not None  # the plan has one of the two
    whole = _steps(plan, patients, 1.0, plan.federation.rounds)
    return noise_for(dp.epsilon, dp.delta, whole.rate, whole.steps)


def _inversion(
    plan: Plan, counted: Sequence[RoundRecord], rows: Sequence[SiteRound]
) -> InversionRecord | None:
    """On what the hub got where it got most: one site's part, if a round was clear."""
    if not counted:
        return None
    shares: tuple[float, ...] = (1.0,)
    if all(r.updates == "under masks" for r in counted):
        sums = [[row.weight for row in r.sites if row.weight > 0.0] for r in counted]
        largest = sorted(max(sums, key=max), reverse=True)[:MOST_SITES]
        shares = tuple(weight / sum(largest) for weight in largest)
    dp = plan.privacy.dp
    if dp is None:
        return audit_inversion(plan, Way(shares))
    noise = _noise(plan, dp, max(1, _paid_most(rows).cases))
    return audit_inversion(plan, Way(shares, dp.clip_norm, noise))


def _steps(plan: Plan, patients: int, noise: float, rounds: int) -> NoisySteps:
    """What a site with so many patients does in so many rounds."""
    rate = min(1.0, plan.training.batch_size / patients)
    return NoisySteps(rate, noise, rounds * steps_per_round(plan, patients))


def _fewest(epsilon_of: Callable[[int], float], *, at_most: float, cases: int) -> int:
    """The fewest patients whose epsilon is what was told: a patient has many cases."""
    low, high = 1, cases
    while low < high:
        middle = (low + high) // 2
        if epsilon_of(middle) <= at_most:
            high = middle
        else:
            low = middle + 1
    return low


def _membership(
    folder: Path, plan: Plan, sites: Sequence[str], device: str
) -> MembershipRecord | None:
    """By the loss of the final model; only where the cases are on this machine."""
    here = [folder / "sites" / s for s in sites if s not in (POOLED, PUBLIC)]
    if not plan.has_global_model or not all((s / SITE_FILE).exists() for s in here):
        return None
    place = choose_device(device)
    network, layout = first_model(plan)
    load_vector(network, layout, final_model(folder))
    network.to(place).eval()
    task = task_of(plan)

    def score(case: PreparedCase) -> float:
        return -float(task.judge(network, case, 0, place)["loss"][0])

    members: list[float] = []
    others: list[float] = []
    with torch.no_grad():
        for site in here:
            cases = open_cases(site, plan)
            train, test = cases.data.train[:MOST_CASES], cases.data.test
            what, total = f"membership at {site.name}, case", len(train) + len(test)
            for done, record in enumerate((*train, *test), start=1):
                found = members if done <= len(train) else others
                found.append(score(cases.store.open(record)))
                tell_work(what, done, total)
    if not members or not others:
        return None
    got = membership_of(np.array(members), np.array(others))
    return MembershipRecord(**vars(got))


def _tens(shares: Sequence[float]) -> str:
    """The mean of shares as a range of ten percent."""
    mean = sum(shares) / len(shares) if shares else 0.0
    low = min(90, int(mean * 10.0 + 1e-9) * 10)
    return f"{low} to {low + 10} %"
