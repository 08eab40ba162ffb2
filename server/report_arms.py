"""Looking up arms and the monitored metric in a run's record.

What is absent or not a number comes back as None, so that no caller can take it for a
zero.
"""

from server.record import ArmRecord, RunRecord
from server.report_format import finite


def arm_of(record: RunRecord, name: str) -> ArmRecord | None:
    """The arm of that name."""
    return next((arm for arm in record.arms if arm.name == name), None)


def local_arms(record: RunRecord) -> list[ArmRecord]:
    """The arms that trained at one hospital alone."""
    return [arm for arm in record.arms if arm.name.startswith("local-")]


def mean_of(record: RunRecord, arm: ArmRecord | None) -> float | None:
    """The monitored metric of an arm, averaged over the sites' test patients."""
    return None if arm is None else finite(arm.test_mean.get(record.monitor))


def value_at(record: RunRecord, arm: ArmRecord | None, site: str) -> float | None:
    """The monitored metric of an arm on one site's test patients."""
    if arm is None:
        return None
    return finite(arm.test.get(site, {}).get(record.monitor))


def best_local(record: RunRecord) -> ArmRecord | None:
    """The local arm that does best on all hospitals' test patients."""
    judged = [arm for arm in local_arms(record) if mean_of(record, arm) is not None]
    return max(judged, key=lambda arm: mean_of(record, arm) or 0.0, default=None)
