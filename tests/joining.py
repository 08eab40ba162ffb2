"""A hub and hospitals that join it, on a clock that stands still."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.install import install, read_kit
from client.joining import create_site
from client.site_file import new_settings
from common.certificates import fingerprint_of
from common.joining import request_fingerprint
from server.asked import read_request
from server.authority import create_hub
from server.enrol import enroll
from server.hub import Hub, HubFile

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Asked:
    """A hospital that has written its request."""

    folder: Path
    path: Path
    told: str

    @property
    def request(self) -> bytes:
        return self.path.read_bytes()


def a_hub(folder: Path, name: str = "hub.example.org", now: datetime = NOW) -> Hub:
    return create_hub(folder, HubFile(name=name), now)


def a_site(folder: Path, name: str = "charite", now: datetime = NOW) -> Asked:
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = new_settings(name, "hub.example.org:8443", folder.parent, "dicom")
    path, request = create_site(folder, settings, now)
    return Asked(folder, path, request_fingerprint(request))


def let_in(hub: Hub, asked: Asked, now: datetime = NOW, days: int = 90) -> bytes:
    """The content of its kit."""
    checked = read_request(asked.request)
    return enroll(hub, checked, asked.told, days, now).read_bytes()


def joined(hub: Hub, folder: Path, name: str = "charite", now: datetime = NOW) -> Asked:
    """A hospital that is let in and has installed its kit."""
    asked = a_site(folder, name, now)
    kit = let_in(hub, asked, now)
    install(asked.folder, read_kit(kit), fingerprint_of(hub.authority), now)
    return asked


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below, to see that nothing was touched."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that dies at its n-th sync or rename, from 0.

    Returns:
        Whether it died; False when the work has fewer steps.
    """
    pid = os.fork()
    if pid == 0:
        left = step

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object) -> object:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return real(*args)

            return call

        os.fsync = dying(os.fsync)  # type: ignore[assignment]
        Path.replace = dying(Path.replace)  # type: ignore[method-assign,assignment]
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9
