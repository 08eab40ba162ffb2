"""One order from a file, worked on at the site, and the answer as a file.

The site's own app does the work, by the same rules as over a live line. An order that
was answered is not worked on again: whoever needs the answer has the file. One that
failed may be tried again, say when the plan has been approved.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import Message

from client.private_files import make_private_folder
from client.site import SIGN_KEY, read_site
from common.durable import write_whole
from common.errors import EngineError
from common.keys import read_signing_key
from common.parcel import AnswerParcel, Failure, read_order, write_answer
from deploy.engine import InProcessGrid

PARCELS = "parcels"
"""Folder of a site with one empty file for each order that was answered."""


def work_parcel(
    folder: Path, order_path: Path, answers: Path, hub_key: Ed25519PublicKey
) -> Path:
    """Work on an order and write the answer.

    Args:
        folder: The site's folder.
        order_path: The order.
        answers: Folder for the answer.
        hub_key: The hub's verifying key.

    Returns:
        The answer's path; it may hold a failure, which the hub is to hear of too.

    Raises:
        ContributionError: The order is not taken; `code` says why in a word.
        FedctError: The folder is no site's.
    """
    site, key = read_site(folder).name, read_signing_key(folder / SIGN_KEY)
    make_private_folder(folder / PARCELS)
    answered = {path.name for path in (folder / PARCELS).iterdir()}
    order = read_order(order_path, site, hub_key, answered)
    grid = InProcessGrid([folder])
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(order.content, node, order.kind)])
    content = (
        Failure(reply.error.code, reply.error.reason or "no reason was given")
        if reply.has_error()
        else reply.content
    )
    answer = AnswerParcel(order.message_id, site, order.kind, content)
    path = answers / f"{site}-{order.kind}-{order.message_id[:8]}.answer"
    try:
        write_answer(path, answer, order.reply_key, key)
        if not isinstance(content, Failure):
            write_whole(folder / PARCELS / order.message_id, b"", mode=0o600)
    except OSError as error:
        raise EngineError(
            f"site {site!r} could not write its answer ({error.strerror}), expected "
            "room and rights; mend that and give it the order once more"
        ) from error
    return path
