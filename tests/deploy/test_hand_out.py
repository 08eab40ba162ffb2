"""What a real federation's run leaves, from the files that its arm wrote."""

import json

from client.egress import nearest_ten
from common.plan_file import load_plan
from deploy.hand_out import hand_out_run
from deploy.run_folder import begin
from deploy.simulate import simulate
from server.report import read_record
from server.run_files import PLAN_FILE, ROSTERS_FILE
from tests.deploy.conftest import SEGMENTATION

ROUNDED = ("train", "validation", "test", "accepted", "found")


def test_a_real_federation_shows_rounded_numbers_as_ranges_and_no_time_of_intake(
    plan_file, tmp_path, fedct
):
    folder = tmp_path / "run"
    rehearsed = simulate(plan_file(SEGMENTATION, ("rounds = 3", "rounds = 1")), folder)
    assert rehearsed.intake_s is not None
    assert rehearsed.seconds > rehearsed.intake_s > 0.0
    true = {
        site.name: (site.train, site.validation, site.test) for site in rehearsed.sites
    }
    assert all(0 < count < 10 for counts in true.values() for count in counts)
    path = folder / ROSTERS_FILE
    rosters = json.loads(path.read_text())
    for roster in rosters.values():
        roster |= {name: nearest_ten(roster[name]) for name in ROUNDED}
    path.write_text(json.dumps(rosters))

    record = hand_out_run(folder, load_plan(folder / PLAN_FILE), begin(folder, 1))
    assert read_record(folder) == record
    assert record.intake_s is None
    assert record.seconds == sum(arm.seconds for arm in record.arms)
    assert {site.train for site in record.sites} == {10}
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<td>1–14</td><td>1–14</td><td>1–14</td>") == len(record.sites)
    assert "2–28 training cases" in page
    assert ">10<" not in page
    told = " ".join(fedct("report", folder).out.split())
    assert told.count("(1-14 train, 1-14 validation, 1-14 test)") == len(record.sites)
