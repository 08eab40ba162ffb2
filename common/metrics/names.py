"""Which metrics to show: tasks give each as `name` over classes and as `name/class`.

With one class both are the same number under two names, so one is enough for people;
files for programs keep both.
"""

from collections.abc import Sequence


def told_once(names: Sequence[str], monitor: str, classes: int) -> list[str]:
    """The names without those that only repeat another.

    Args:
        names: Of metrics, each once.
        monitor: Kept, as which `name` or `name/class` it stands.
        classes: Number of classes of the task.
    """
    if classes != 1:
        return list(names)
    stem, known = monitor.partition("/")[0], set(names)

    def is_kept(name: str) -> bool:
        base = name.partition("/")[0]
        if base == stem and monitor in known:
            return name == monitor
        return name == base or base not in known

    return [name for name in names if is_kept(name)]
