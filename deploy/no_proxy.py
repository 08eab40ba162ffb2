"""Loopback is never asked for through a proxy.

Where `HTTPS_PROXY` is set, HTTP clients would ask the hospital's proxy even for this
machine's own ports: the hub's commands for its SuperLink, to begin with.
"""

import os
from typing import Final

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def no_proxy() -> dict[str, str]:
    """`NO_PROXY` of this machine with loopback in it, in both ways of writing it."""
    given = (os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = [host.strip() for text in given for host in text.split(",")]
    spared = ",".join(dict.fromkeys([*filter(None, hosts), *LOOPBACK]))
    return {"NO_PROXY": spared, "no_proxy": spared}
