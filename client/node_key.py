"""The node key's signature on each request, and the hub's clock.

Flower's hub wants each request's time signed, and takes it only from 5 s behind to
305 s ahead of its own. Hospital clocks are off by hours now and then, and a round does
not depend on wall time. So the time that is signed is the hub's, taken from the `Date`
header of its answers (RFC 9110, 6.6.1) over the verified connection.

Each process also says which one it is, by a random number. Two that speak by turns
under one name show the hub that a key is used in two places (`deploy.twin_keys`);
nobody else learns the number, as it travels inside TLS.

Not covered here: certificates. Their validity is judged by the machine's own clock, and
`fedct client check` says when that is off.
"""

import datetime
import secrets
from base64 import b64encode
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

_SMALL = datetime.timedelta(seconds=2)
"""The header has whole seconds; a smaller difference is no difference."""


SESSION_HEADER = "Fedct-Session"
"""Logged by the hub's nginx, `deploy/nginx/hub.conf.j2`."""


def machine_time() -> datetime.datetime:
    """This machine's own clock, UTC."""
    return datetime.datetime.now(datetime.UTC)


class HubClock:
    """How far the hub's clock is from ours."""

    def __init__(self) -> None:
        """Begin with our own time."""
        self._offset = datetime.timedelta(0)

    def now(self) -> datetime.datetime:
        """The hub's time, UTC."""
        return machine_time() + self._offset

    @property
    def offset_s(self) -> float:
        """Seconds to add to our time for the hub's."""
        return self._offset.total_seconds()

    def heard(self, headers: Mapping[str, str]) -> bool:
        """Take the time from an answer's headers; whether it was news."""
        try:
            theirs = parsedate_to_datetime(headers.get("date", ""))
            offset = theirs - machine_time()
        except (ValueError, TypeError):  # no date, or one without a zone
            return False
        if abs(offset - self._offset) <= _SMALL:
            return False
        self._offset = offset
        return True


class NodeSignature:
    """Signs each request's time with the node key; names process and Flower version."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, clock: HubClock) -> None:
        """Sign with `key` by the hub's clock."""
        self._key = key
        self._clock = clock
        self.public_key: bytes = public_key_to_bytes(key.public_key())
        versions = RuntimeVersionMetadata.from_local_component("SuperNode")
        self._versions = dict(versions.as_metadata())
        self._session = secrets.token_hex(8)

    def intercept(
        self, context: ProtobufRequestContext, call_next: ProtobufCall
    ) -> httpx.Response:
        """Add the headers; learn the hub's time from its answer."""
        timestamp = self._clock.now().isoformat()
        signature = sign_message(self._key, timestamp.encode("ascii"))
        context.request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode(),
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode(),
                SESSION_HEADER: self._session,
                **self._versions,
            }
        )
        response = call_next(context)
        if response.is_success:
            self._clock.heard(response.headers)
        return response
