"""Preflight of the site's own folder: settings, certificate, rights, desk, data.

Rows name files of the folder, never one below the data's root.
"""

import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from client.audit import read_audit
from client.desk_file import read_desk
from client.install import read_membership
from client.preflight_row import Check, Row, failed, passed, warned
from client.site_file import NODE_KEY, SIGN_KEY, TLS_KEY, SiteFile
from common.sources import Source

LOOK_S = 10.0
"""Longest search for a first image."""
_SUFFIXES = {
    "nifti": (".nii", ".nii.gz"),
    "metaimage": (".mhd", ".mha"),
    "images": (".png", ".zip"),
}


def site_checks(folder: Path, settings: SiteFile | None) -> list[Check]:
    """Every check of the site's folder; what needs the settings, if they are legible.

    Args:
        folder: The site's.
        settings: Its `client.toml`, or none if that is wrong.
    """
    checks = [
        Check("rights", lambda: check_rights(folder)),
        Check("desk", lambda: check_desk(folder)),
    ]
    if settings is None:
        return checks
    data = settings.data
    return [
        Check("own certificate", lambda: check_certificate(folder)),
        *checks,
        Check("data", lambda: check_data(data), 2 * LOOK_S),
    ]


def check_certificate(folder: Path) -> Row:
    """Whether the site's certificate fits its key, its hub and today."""
    now = datetime.now(UTC)
    membership = read_membership(folder, now)
    days = (membership.not_after - now) / timedelta(days=1)
    found = f"of {membership.settings.name}, good for {days:.1f} days"
    if membership.is_renewal_due(now):
        fix = "renew it now: `fedct client renew`"
        return warned("own certificate", found, fix)
    return passed("own certificate", found)


def check_rights(folder: Path) -> Row:
    """Whether nobody else can enter the folder, and no key is open to others."""
    own = os.geteuid()
    keys = [folder / key for key in (TLS_KEY, NODE_KEY, SIGN_KEY)]
    if lost := [key.name for key in keys if not key.exists()]:
        return failed(
            "rights",
            f"keys are not there: {', '.join(lost)}",
            "put them back from a backup, or have the site revoked and join anew with "
            "a new folder",
        )
    secret = [folder, folder / "keys", *sorted((folder / "keys").glob("*"))]
    for path in secret:
        name = "the site's folder" if path == folder else str(path.relative_to(folder))
        status = path.stat()
        if status.st_uid != own:
            return failed(
                "rights",
                f"{name} belongs to user {status.st_uid}, this is user {own}",
                "run every command as the user who made the folder",
            )
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            wanted = "700" if path.is_dir() else "600"
            return failed(
                "rights",
                f"{name} is open to others (mode {mode:04o})",
                f"chmod {wanted}; if others work here, revoke and join anew",
            )
    return passed("rights", f"folder and {len(secret) - 2} keys are closed to others")


def check_desk(folder: Path) -> Row:
    """Whether decisions are legible and the audit log is whole."""
    desk, log = read_desk(folder), read_audit(folder)
    if log.broken is not None:
        return failed(
            "desk",
            f"the audit log was changed: {log.broken}",
            "find out by whom; keep the file, move it away to go on",
        )
    states = [entry.state for entry in desk.plans]
    found = (
        f"{states.count('approved')} plans approved, {states.count('waiting')} "
        f"waiting; {len(log.lines)} orders answered"
    )
    if desk.pause is not None:
        fix = "`fedct client resume` takes orders again"
        return warned("desk", f"paused: {desk.pause.reason or 'no reason'}", fix)
    if "waiting" in states:
        return warned("desk", found, "`fedct client approve` shows what waits")
    return passed("desk", found)


def check_data(source: Source) -> Row:
    """Whether the images are there, legible, and safe from being written by all."""
    root = Path(source.source)
    if not root.exists():
        return failed("data", "the folder in client.toml is not there", "mount it")
    found, sealed = _first_image(root, source.format)
    if not found and sealed:
        return failed(
            "data",
            f"user {os.geteuid()} may not read the folder in client.toml, or what lies "
            "in it",
            "let this user's group read it and everything below",
        )
    if found is False:
        return failed(
            "data",
            f"no {source.format} file lies in the folder",
            "check data.source and data.format in client.toml",
        )
    if root.stat().st_mode & stat.S_IWOTH:
        return warned(
            "data",
            "every user of this machine may write into the folder",
            "chmod o-w: whoever writes there decides what is learned",
        )
    if found is None:
        return warned(
            "data",
            f"no {source.format} file was met in {LOOK_S:.0f} s of looking",
            "check data.source; on a slow disk this may be nothing",
        )
    return passed("data", f"the folder is legible and holds {source.format} files")


def _first_image(root: Path, kind: str) -> tuple[bool | None, bool]:
    """Whether an image was found (unset: time ran out), and something was sealed."""
    until, sealed = time.monotonic() + LOOK_S, False
    for path in [root] if root.is_file() else _files(root):
        if path is None:
            sealed = True
            continue
        if time.monotonic() > until:
            return None, sealed
        try:
            if _is_image(path, kind):
                return True, sealed
        except OSError:
            sealed = True
    return False, sealed


def _files(root: Path) -> Iterator[Path | None]:
    """Regular files below the root, links not followed; None for a sealed folder."""
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        yield Path(entry.path)
        except OSError:
            yield None


def _is_image(path: Path, kind: str) -> bool:
    """By the first bytes for DICOM (PS3.10, 7.1), else by the name; and it opens."""
    if kind != "dicom" and not path.name.lower().endswith(_SUFFIXES[kind]):
        return False
    with path.open("rb") as file:
        head = file.read(132)
    if kind != "dicom":
        return True
    # Without a preamble a data set begins with group 0008 in little endian.
    return head[128:] == b"DICM" or head[:2] == b"\x08\x00"
