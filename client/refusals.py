"""What the hub says no with, as errors that say what to do.

A refusal comes from one of two: from the SuperLink with a number of Flower's, or from
nginx before it, which has OpenSSL's opinion of the site's certificate.
"""

import httpx
from flwr.supercore.error import ApiErrorCode, FlowerError

from common.errors import JoinError, KeyInUseError


class RunEndedError(JoinError):
    """The run is over; nothing of it is given out or wanted any more."""


def error_of(response: httpx.Response) -> JoinError:
    """What the hub said no with, and what to do."""
    if error := FlowerError.from_json(response.text):
        if error.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return RunEndedError("the hub ended the run meanwhile")
        if error.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return KeyInUseError(
                "the hub has a service with this site's key already, expected none; "
                "after a crash or a move the place is free within a minute and taken "
                "by itself; if not, the key is in use in a second place: stop that "
                "service, or, if it is not yours, have the hub revoke this site and "
                "join anew with a new folder"
            )
        return JoinError(
            f"the hub refused this site's request (code {error.code}: {error.message})"
        )
    if response.status_code == 400:
        return _refused_certificate(response.text.strip().rpartition(":")[2])
    if response.status_code == 401:
        return JoinError(
            "the hub does not take this site's node key, expected the one that it "
            "enrolled; ask the coordinator whether this site was revoked"
        )
    return JoinError(
        f"the hub answered HTTP {response.status_code}, expected 200; something "
        "between may have answered in its place: see `fedct client check`"
    )


def unregistered() -> JoinError:
    """What to say of a key that the hub let in and does not know."""
    return JoinError(
        "the hub has not this site's node key on its register, expected it there since "
        "the site was enrolled; if hub or site are new, wait a minute, else ask the "
        "coordinator what `fedct server sites` says"
    )


def _refused_certificate(reason: str) -> JoinError:
    """What nginx, which asked OpenSSL, says of this site's certificate."""
    todo = {
        "certificate revoked": "ask the coordinator why; to take part again, begin "
        "with a new folder (fedct client request)",
        "certificate has expired": "renew it with `fedct client renew`",
        "certificate is not yet valid": "a clock was wrong when it was signed, or is "
        "now: `fedct client check` compares yours with the hub's",
    }.get(reason, "install the kit of the hub in client.toml, or ask its coordinator")
    known = reason.isascii() and reason.isprintable() and 0 < len(reason) < 64
    return JoinError(
        "the hub refused this site's certificate "
        f"({reason if known else 'no reason given'}), expected one that it signed, "
        f"that is valid today and not revoked; {todo}"
    )
