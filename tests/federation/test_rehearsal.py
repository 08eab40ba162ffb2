"""The whole federation with real processes: what is killed comes back, bit-equal."""

import shutil

import pytest

from deploy.rehearsal import DISTURBED, UNDISTURBED, rehearse
from server.record import RunRecord

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install)")
@pytest.mark.timeout(840)
def test_a_federation_survives_its_hospitals_and_its_hub_and_ends_in_the_same_model(
    tmp_path, monkeypatch
):
    for home in ("HOME", "XDG_CACHE_HOME"):  # as many a service's user
        monkeypatch.setenv(home, "/proc/nowhere")
    said = []
    seen = rehearse(tmp_path / "rehearsal", said.append, size="tiny")
    assert seen.digests[UNDISTURBED] == seen.digests[DISTURBED]
    assert seen.refused_after_s < 60
    record = RunRecord.model_validate_json(
        seen.report.with_suffix(".json").read_bytes()
    )
    (arm,) = record.arms
    assert [row.outcome for r in arm.rounds for row in r.sites] == ["accepted"] * 15
    assert record.engine == "deployment"
