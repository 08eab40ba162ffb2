"""An echo through the whole chain: to the hub's register of keys and back.

Not covered here: whether the hub's runner is at work; `fedct server status` says so to
the coordinator.
"""

import re
import ssl

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.fleet import fleet_client
from client.hub_road import HubAddress
from client.node_key import HubClock, NodeSignature
from client.refusals import error_of, unregistered
from common.errors import JoinError, TransportError

_ERRNO = re.compile(r"\[Errno -?\d+\] ")
_STEP_S = 10.0
"""For one step on the network."""


def echo(hub: HubAddress, key: ec.EllipticCurvePrivateKey) -> None:
    """Ask the hub whether it knows this site's key; nothing comes of it there.

    What is asked for is a place, with a heartbeat that no node may have. The hub looks
    at that last: it lets the certificate through nginx, checks the signature and finds
    the key on its register before. So the refusal of the heartbeat, and no other
    answer, proves the whole chain.

    Raises:
        JoinError: The hub answers, and does not let this site take part.
        TransportError: It does not answer, or only its nginx does.
    """
    clock = HubClock()
    signature = NodeSignature(key, clock)
    request = ActivateNodeRequest(public_key=signature.public_key, heartbeat_interval=0)
    client = fleet_client(hub, signature, _STEP_S)
    try:
        answer = _refusal(client, request)
        if clock.heard(answer.headers):
            answer = _refusal(client, request)  # signed by the hub's clock
    except (httpx.TransportError, ssl.SSLError) as error:
        raise TransportError(
            f"no answer came back ({_ERRNO.sub('', str(error)) or 'hung up'}); mend "
            "the rows above first"
        ) from error
    finally:
        client.close()
    said = FlowerError.from_json(answer.text)
    code = None if said is None else said.code
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        raise unregistered()
    if code is None and answer.status_code in (502, 503, 504):
        raise TransportError(
            "the hub's door is open and nobody is behind it (HTTP "
            f"{answer.status_code}); ask the coordinator for `fedct server status`"
        )
    if code != ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        raise error_of(answer)


def _refusal(client: FleetHttpClient, request: ActivateNodeRequest) -> httpx.Response:
    try:
        client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return error.response
    raise JoinError(
        "the hub took a request that no Flower takes, expected a refusal; something "
        "between answers in its place: ask the coordinator"
    )
