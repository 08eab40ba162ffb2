"""Rows 26 to 28 and 30: clocks, certificates, keys and versions that are wrong."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.resident import NODE_FILE, _here
from client.site_file import SITE_CERTIFICATE, TLS_KEY
from common.certificates import certificate_pem, issue
from common.contract import CONTRACT
from common.errors import KeyInUseError, VersionError
from common.keys import read_ec_key
from deploy.hub_status import hub_status
from server.hub import open_hub
from server.revocation import revoke
from tests.faults.clock import wrong_clock
from tests.faults.federation import Federation, federation
from tests.faults.hosts import REPOSITORY, SHORT, until
from tests.faults.invariants import check_invariants
from tests.faults.points import TIMES
from tests.faults.powerloss import COMPILER
from tests.faults.rows import row
from tests.faults.scenes import ALL, SOON, WITHOUT_NORTH, comes_back

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc)")
SHORTLY = {**SOON, "join_s": 3.0}
"""Nor does a run wait for a site that can't come."""


@contextmanager
def started_with(fed: Federation, env: dict[str, dict[str, str]]) -> Iterator[None]:
    """Sites whose processes find something else in their environment."""
    for name, values in env.items():
        fed.site(name).stop()
        fed.site(name).env |= values
        fed.site(name).start()
    try:
        yield
    finally:
        for name in env:
            fed.site(name).stop()
            fed.site(name).env.clear()


@needs_compiler
@row(
    26,
    "clock an hour behind at one site, an hour ahead at another, minutes after the hub "
    "and its certificates were made",
    "rounds work (sequence, not wall time)",
)
def test_clocks_are_wrong(fed, seen):
    began = datetime.datetime.now()
    with started_with(
        fed,
        {"north": wrong_clock(fed.folder, -1), "south": wrong_clock(fed.folder, 1)},
    ):
        until(lambda: fed.hub.online() == set(ALL), what="both to come")
        run = fed.run()
        run.finished()
        hours = [_last_time(fed, name) - began for name in ("north", "south")]
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert [round(h.total_seconds() / 3600) for h in hours] == [-1, 1]
    seen("3 of 3 rounds with all sites; the logs of the two are 2 h apart")


def _last_time(fed: Federation, site: str) -> datetime.datetime:
    """By the site's own clock."""
    lines = [li for li in fed.site(site).log("service").splitlines() if li[:2] == "20"]
    return datetime.datetime.strptime(lines[-1][:19], "%Y-%m-%d %H:%M:%S")


@needs_compiler
@row(
    27,
    "a certificate that expired ten hours ago, at a site whose clock says that it is "
    "good; in another federation, one that is revoked in mid-run",
    "refused, others unaffected",
)
def test_a_certificate_is_expired_or_revoked(fed, seen, tmp_path):
    seen(_expired(fed))
    with federation(tmp_path / "other") as other:
        seen(_revoked(other))


def _expired(fed: Federation) -> str:
    north = fed.site("north")
    hub = open_hub(fed.hub.folder, datetime.datetime.now(datetime.UTC))
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=34)
    key = read_ec_key(north.folder / TLS_KEY).public_key()
    old = certificate_pem(issue("north", key, hub.issuer, "client", then, 1))
    path = north.folder / SITE_CERTIFICATE
    good, before = path.read_bytes(), north.log("service").count("this site's cert")
    path.write_text(old)
    try:
        with started_with(fed, {"north": wrong_clock(fed.folder, -20)}):
            refusals = lambda: north.log("service").count("this site's cert") - before  # noqa: E731
            until(refusals, what="the hub to refuse")
            run = fed.run(**SHORTLY)
            run.finished()
            assert "north" not in fed.hub.online()
    finally:
        path.write_bytes(good)
    check_invariants(run)
    assert run.accepted() == [WITHOUT_NORTH] * 3
    comes_back(fed, "north")
    return "expired: refused by the hub's clock, back with the good one"


def _revoked(fed: Federation) -> str:
    north = fed.site("north")
    north.at("training", "hold", round=2)
    run = fed.run(**SHORTLY)
    north.reached("training", round=2)
    began = time.monotonic()
    revoke(
        open_hub(fed.hub.folder, datetime.datetime.now(datetime.UTC)),
        "north",
        datetime.datetime.now(datetime.UTC),
    )
    until(lambda: "north" not in fed.hub.online(), what="north to be out")
    seconds = time.monotonic() - began
    north.go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, WITHOUT_NORTH]
    until(lambda: "refused" in north.log("service"), what="north to notice")
    return f"revoked: out after {seconds:.1f} s, its answer of that round too"


@row(
    28,
    "a copy of a site's folder, keys and all, started beside it; a copy that claims to "
    "be the site's own process, started again after a crash",
    "second refused, alarm; or both noticed",
)
def test_a_key_is_in_use_twice(fed, seen, tmp_path):
    north = fed.site("north")
    north.kill_service()  # a start after a crash is no second place
    until(lambda: fed.hub.online() == set(ALL), what="north to come back")
    run = fed.run()
    run.rounds(1)
    assert _alarm(fed) is None
    twin = tmp_path / "twin"
    shutil.copytree(north.folder, twin, ignore=shutil.ignore_patterns("*.sock"))
    began = time.monotonic()
    done = _service(twin, 120)
    assert done.returncode == KeyInUseError.exit_code
    said = done.stderr.strip().splitlines()[-1].partition("ERROR ")[2]
    assert "in use in a second place" in said
    until(lambda: _alarm(fed), what="the alarm")
    seconds = time.monotonic() - began
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    seen(f"refused with error {done.returncode}, alarm {seconds:.0f} s after its start")

    (fed.hub.folder / "twin_keys.json").unlink()
    fed.hub.kill_runner()  # it would remember
    until(lambda: fed.hub.online() == set(ALL), what="the hub")
    here = json.loads((north.folder / NODE_FILE).read_text())["node_id"]
    (twin / NODE_FILE).write_text(json.dumps(_here(twin, here)))
    began = time.monotonic()
    with subprocess.Popen(**_started(twin)) as thief:
        until(lambda: _alarm(fed), what="the alarm")
        seconds = time.monotonic() - began
        thief.kill()
    alarm = _alarm(fed)
    assert alarm is not None
    assert alarm.startswith("site north: its key is in use from two places since")
    seen(f"a thief who takes the place: “{alarm}”, {seconds:.0f} s after its start")


def _alarm(fed: Federation) -> str | None:
    (site,) = [
        site for site in hub_status(fed.hub.folder).sites if site.name == "north"
    ]
    return site.alarm


def _started(folder: Path) -> dict[str, object]:
    return {
        "args": [sys.executable, "-m", "client.resident", str(folder)],
        "env": {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        "stderr": subprocess.PIPE,
        "text": True,
    }


def _service(folder: Path, within_s: float) -> subprocess.CompletedProcess[str]:
    """The service itself, without a supervisor that starts it again."""
    return subprocess.run(**_started(folder), timeout=within_s, check=False)


@row(
    30,
    "site updated alone; hub updated alone; a site so old that it looks at nothing; a "
    "request from a site that was updated alone",
    "refused at join with clear text",
)
def test_versions_differ(fed, seen):
    for contract, older in ((CONTRACT + 1, "hub"), (CONTRACT - 1, "site")):
        times = json.dumps({**SHORT, "common.contract:CONTRACT": contract})
        with started_with(fed, {"north": {TIMES: times}}):
            until(lambda: fed.hub.online() == set(ALL), what="north to connect")
            seen(_waits_for_an_update(fed, older))
    comes_back(fed, "north")
    fed.site("north").at("answer", "tests.faults.lies:old_contract", kind="hello")
    seen(_waits_for_an_update(fed, "site"))
    seen(_refused_request(fed))


def _waits_for_an_update(fed: Federation, older: str) -> str:
    """A run that waits for north, says why, and goes on without it."""
    told = f"update FedCT at the {older}"
    run = fed.run(**{**SOON, "join_s": 20.0})
    until(lambda: told in str(run.state.waiting), what="the reason")
    (why,) = [why for why in run.state.waiting.values() if told in why]
    run.finished()
    check_invariants(run)
    assert run.accepted() == [WITHOUT_NORTH] * 3
    return f"“{why}”"


def _refused_request(fed: Federation) -> str:
    newer = fed.folder / "newer.request.json"
    content = (fed.site("north").folder / "north.request.json").read_text()
    ours = f'"contract": {CONTRACT}'
    assert ours in content
    newer.write_text(content.replace(ours, f'"contract": {CONTRACT + 1}'))
    argv = ["-c", "from deploy.cli import main; main()", "server", "enroll"]
    done = subprocess.run(
        [sys.executable, *argv, str(fed.hub.folder), str(newer)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == VersionError.exit_code
    assert "update FedCT at the hub" in done.stderr
    return f"`fedct server enroll` ends with {done.returncode}"
