"""Every deliberate failure of FedCT, with the exit code a shell sees.

    FedctError                      1
    ├── UsageError                  2   the command line asks for something impossible
    ├── PlanError                  10   the plan is wrong, by key and line
    ├── IntakeError                20   a source can't be taken in as a whole
    │   └── LabelError             21   a label object can't be read or does not fit
    ├── GeometryError              22   a volume or grid is not what geometry needs
    ├── StoreError                 23   the prepared-case store is damaged or foreign
    ├── DiskFullError              24   there is no room for a file
    ├── ModelError                 30   a network can't be built, or does not fit
    ├── TrainingError              31   a local training step went wrong (not finite)
    ├── OutOfMemoryError           32   an order needs more memory than there is
    ├── ContributionError          40   one site's reply is refused
    ├── QuorumError                41   too few sites for a mean
    ├── RunError                   42   a run folder can't be started or resumed
    ├── EngineError                43   the engine that carries messages failed
    ├── ReleaseError               44   a model does not pass the plan's gate
    ├── JoinError                  50   a certificate, request or join kit is refused
    │   ├── KeyInUseError          55   another service has the site's place at the hub
    │   └── VersionError           56   hub and site don't speak one contract
    ├── TransportError             51   the line to the hub, a proxy or nginx failed
    ├── ControlError               52   the site's own service can't be asked
    ├── PolicyError                53   the hospital's policy says no
    ├── SupervisorError            54   a process can't be started or kept
    └── StoppedError              130   stopped by the user; the run can be resumed

A message reads "{who} {did what} {got}, expected {want}; {what to do}" and holds no
patient data: no tag value, no name, no path below a data root. A single bad series is
no error but a verdict (`client.intake.verdict`).
"""

import errno
from pathlib import Path

ERROR_BASE = 1000
"""An error travels between hub and site as this plus its exit code: Flower keeps the
numbers below for itself."""


class FedctError(Exception):
    """Base of all deliberate failures; never raised itself."""

    exit_code = 1
    """What the shell sees; unique to each subclass."""

    def __init__(self, sentence: str = "", *, code: str | None = None) -> None:
        """Say what went wrong.

        Args:
            sentence: As all errors say it.
            code: One word for machines, where a caller tells errors of a kind apart.
        """
        super().__init__(sentence)
        self.code = code


class UsageError(FedctError):
    """The command line asks for something that can't be done."""

    exit_code = 2


class PlanError(FedctError):
    """A plan is not valid, or can't work on the data at hand."""

    exit_code = 10


class IntakeError(FedctError):
    """A source as a whole can't be taken in (absent, empty, unreadable)."""

    exit_code = 20


class LabelError(IntakeError):
    """A label object can't be read, or does not fit the image it is for."""

    exit_code = 21


class GeometryError(FedctError):
    """A volume or grid breaks what geometry needs (finite, invertible, 3-D)."""

    exit_code = 22


class StoreError(FedctError):
    """The prepared-case store is damaged, foreign or not writable."""

    exit_code = 23


class DiskFullError(FedctError):
    """A file has no room on its disk; what was there before is untouched."""

    exit_code = 24


def disk_full(error: OSError) -> DiskFullError | None:
    """What to say if the disk, or this user's share of it, is full; else nothing."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    what = "a file" if error.filename is None else Path(error.filename).name
    return DiskFullError(
        f"disk has no room left for {what} ({error.strerror}), expected some; make "
        "room and do the same again: nothing is left by halves"
    )


class ModelError(FedctError):
    """A network can't be built from the plan, or parameters do not fit it."""

    exit_code = 30


class TrainingError(FedctError):
    """Local training can't go on; the message says where and why."""

    exit_code = 31


class OutOfMemoryError(FedctError):
    """An order needs more memory than this machine or its GPU has free."""

    exit_code = 32


class ContributionError(FedctError):
    """One site's reply is refused; the round goes on without it."""

    exit_code = 40


class QuorumError(FedctError):
    """Too few accepted replies: no mean may be formed."""

    exit_code = 41


class RunError(FedctError):
    """A run folder can't be started, resumed or read."""

    exit_code = 42


class EngineError(FedctError):
    """The engine that carries messages between server and sites failed."""

    exit_code = 43


class ReleaseError(FedctError):
    """A model does not pass `[privacy.release]`; it is not handed out."""

    exit_code = 44


class JoinError(FedctError):
    """Hub and site can't be joined, or a certificate, request or kit is refused."""

    exit_code = 50


class KeyInUseError(JoinError):
    """The hub has a service with this site's keys already."""

    exit_code = 55


class VersionError(JoinError):
    """Hub and site are of FedCT versions that can't work together."""

    exit_code = 56


class TransportError(FedctError):
    """The network between a hospital and the hub failed: line, proxy, nginx."""

    exit_code = 51


class ControlError(FedctError):
    """The site's service can't be reached over its local socket."""

    exit_code = 52


class PolicyError(FedctError):
    """The hospital's own rules refuse an order."""

    exit_code = 53


class SupervisorError(FedctError):
    """A process can't be started, or does not stay up."""

    exit_code = 54


class StoppedError(FedctError):
    """The user stopped the run; `--resume` continues it."""

    exit_code = 130


def error_from(
    exit_code: int, sentence: str, otherwise: type[FedctError]
) -> FedctError:
    """The error that another process of ours had, made anew from its number.

    Args:
        exit_code: As it was said; need not be one of ours.
        sentence: What the error says.
        otherwise: The kind for a number that no error has.
    """
    ours = [kind for kind in globals().values() if _is_error(kind)]
    kinds = {kind.exit_code: kind for kind in ours if kind is not FedctError}
    return kinds.get(exit_code, otherwise)(sentence)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, FedctError)
