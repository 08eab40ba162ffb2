"""A model that does not pass the plan's gate stays at the hub, and `status` says so."""

import pytest

from common.errors import ReleaseError
from deploy.cli_server import server_follow
from deploy.hub_status import hub_status, print_hub_status
from deploy.run_state import WITHHELD_FILE
from server.run_files import ARM_RECORD_FILE
from tests.faults.hosts import PATIENCE_S, until

GATE = {
    "privacy__release": {"under_masks": True},
    "rounds": 1,
    "evaluation__every": 1,
}


def test_a_real_hub_withholds_a_model_that_fails_the_gate(fed, capsys):
    passed = fed.run(**GATE, privacy__secure_aggregation="on")
    more = {"under_masks": True, "max_membership_auc": 0.9}  # not measured at a hub
    failed = fed.run(
        **{**GATE, "privacy__release": more}, privacy__secure_aggregation="on"
    )
    passed.finished()
    page = failed.folder / "report.html"  # the last that is written
    until(page.exists, PATIENCE_S, what="the gate")

    assert (passed.folder / "model").is_dir()  # the control: one gate for both
    assert not (passed.folder / WITHHELD_FILE).exists()
    assert passed.state.why == ""
    assert not (failed.folder / "model").exists()
    assert (failed.folder / ARM_RECORD_FILE).exists()
    assert failed.state.state == "withheld"
    assert "membership" in failed.state.why

    status = hub_status(fed.hub.folder)
    states = {run.name: run.state for run in status.runs}
    names = passed.folder.name, failed.folder.name
    assert [states[name] for name in names] == ["finished", "withheld"]
    capsys.readouterr()
    print_hub_status(status)
    assert f"{names[1]} withheld: run" in " ".join(capsys.readouterr().out.split())
    server_follow(fed.hub.folder, names[0])
    assert "/model" in capsys.readouterr().out
    with pytest.raises(ReleaseError, match="hands out no model"):
        server_follow(fed.hub.folder, names[1])
    assert "/model" not in capsys.readouterr().out
