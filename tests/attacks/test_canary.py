"""No text of a patient leaves a hospital; and if one did, it would be found."""

import pytest

from server.past import SELDOM
from tests.attacks.canary import (
    SPELLINGS,
    Canaries,
    canary_federation,
    hits,
    outside,
    search,
    wires,
)
from tests.attacks.canary_studies import Nest
from tests.attacks.rows import row
from tests.faults.federation import Run
from tests.faults.hosts import until
from tests.faults.invariants import read_audit


@row(
    "insider",
    "carries texts of DICOM tags, paths and file names out of a hospital: in answers, "
    "in sums' names, in what goes wrong",
    "egress gate, numbers in place of texts",
    short=True,
)
def test_no_canary_leaves_a_hospital_and_a_planted_one_is_found(tmp_path, told):
    with canary_federation(tmp_path / "fed", ("first", "second")) as canaries:
        wrong = (1, 2, 3)
        _check_nothing_leaves(canaries, told, rounds=3, kill=False, wrong=wrong)


@row(
    "insider",
    "the same under masks: nine rounds of four sites, of which one is killed",
    "egress gate, numbers in place of texts",
)
def test_no_canary_leaves_under_masks(tmp_path, told):
    names = ("first", "second", "third", "fourth")
    with canary_federation(tmp_path / "fed", names) as canaries:
        masks = {"privacy__secure_aggregation": "on"}
        wrong = (1, 2, 3 + SELDOM)  # after the second time it has to wait
        run = _check_nothing_leaves(
            canaries, told, rounds=4 + SELDOM, kill=True, wrong=wrong, **masks
        )
    rounds = [entry.record for entry in run.journal()]
    assert {(r.outcome, r.updates) for r in rounds} == {("closed", "under masks")}


def _check_nothing_leaves(
    canaries: Canaries, told, *, rounds, kill, wrong, **changes
) -> Run:
    canaries.disturb()
    run = canaries.run(rounds, kill=kill, wrong=wrong, **changes)
    _check_it_went_wrong_as_planned(canaries, run, wrong)
    found = canaries.found()
    searched = outside(canaries.fed)
    size = sum(path.stat().st_size for path in searched)
    assert found == []
    assert (run.folder / "report.html").exists()
    assert {"report.json", "final.safetensors", "runner.log", "wire.bin"} <= {
        path.name for path in searched
    }
    told(
        defended=f"0 hits of {len(canaries.nest.hatched)} canaries in {len(SPELLINGS)} "
        f"spellings, {len(searched)} files, {size / 1e6:.0f} MB"
    )

    planted = canaries.canary_of("first")
    leaking = canaries.leaking_run()
    wire = wires(canaries.fed)[0].read_bytes()
    spelt = {how for _, how in hits(wire, {planted})}
    assert spelt == set(SPELLINGS)
    assert leaking.outcome("first", 1) == "refused"
    reason = leaking.reason("first", 2)
    assert reason.endswith("(error 53.12)")  # the words that came with it are not read
    report = (leaking.folder / "report.html").read_bytes()
    assert hits(report, {planted}) == set()
    told(control=f"gate gone: found in {len(spelt)} of {len(SPELLINGS)} spellings")
    return run


def _check_it_went_wrong_as_planned(canaries: Canaries, run, wrong) -> None:
    """Or the search would prove little."""
    first = canaries.fed.site("first")
    reasons = [run.reason("first", number) for number in wrong]
    assert [reason[reason.index("(error") :] for reason in reasons] == [
        "(error 1)",
        "(error 53.12)",
        "(error 53.12)",
    ]
    canary = canaries.canary_of("first")
    assert canary in (first.folder / "site.log").read_text()  # it stays there
    *_, last = canaries.fed.sites
    assert run.outcome(last, 1) == "accepted"
    assert run.row(last, 1).found == run.row(last, 1).accepted + 1
    until(lambda: read_audit(first.folder).broken is None)
    judged = [line for line in read_audit(first.folder).lines if line.kind == "judge"]
    assert {line.code for line in judged} == {105312}


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("place", range(4))
def test_a_canary_is_found_however_it_is_spelt(how, place, tmp_path):
    nest = Nest(7)
    vrs = ("LO", "CS", "PN", "UI", "DS", "IS", "DA", "TM", "DT")
    for vr in vrs:
        canary = nest.text(vr, "PatientName")
        path = tmp_path / "file"
        path.write_bytes(b"x" * place + SPELLINGS[how](canary) + b"yz")
        assert f"{canary}, {how}, in file" in search([path], {canary})
    other = Nest(1007)
    strangers = {other.text(vr, "PatientName") for vr in vrs}
    assert search([path], strangers) == []


def test_every_canary_is_another_one():
    nest = Nest(1)
    hatched = [
        nest.text(vr) for vr in ("LO", "CS", "UI", "DS", "TM") for _ in range(99)
    ]
    hatched += [nest.name() for _ in range(99)]
    assert len(nest.hatched) == len(hatched) == 6 * 99
    assert nest.text("FD") is None
