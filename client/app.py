"""The Flower ClientApp: messages in, `SiteService` calls, messages out.

The same object runs in every engine. It finds its site by the node's configuration:
`site-folder` where the engine can say it, or `FEDCT_SITES` (a JSON list of folders, by
partition) in workers that only know a number. Services stay open for the life of the
process, so a site is loaded once.

Every answer passes the hospital's rules and the gate (`client.rules`), is written into
the audit log and then sealed with the site's key (`common.signing`). A failure travels
as a number (`common.error_numbers`): its sentence, or the traceback of one that nobody
foresaw with whatever values stand in it, stays in the site's own log.
"""

import datetime
import errno
import json
import logging
import os
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.masking import SiteMasks
from client.open_site import open_site
from client.private_files import FILE_MODE
from client.rules import Tell, let_out, min_cohort, note_left, permitted
from client.service import SiteService
from client.site import LOG_FILE, SIGN_KEY, read_site
from common.canonical import digest_of_answer
from common.error_numbers import UNFORESEEN, number_of, spoken
from common.errors import EngineError, FedctError, OutOfMemoryError, disk_full
from common.exchange import (
    Answer,
    Hello,
    JudgeOrder,
    KeysOrder,
    MaskedUpdate,
    OpenOrder,
    Order,
    Roster,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.keys import read_signing_key
from common.plan import Plan
from common.signing import asked_of, public_text, seal
from common.wire import order_in, payload_bytes, put_seal, to_record

SITES_VARIABLE = "FEDCT_SITES"
SITE_FOLDER_KEY = "site-folder"

_SHORTAGES = (
    "can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "not enough memory",
    "out of memory",  # CUDA's own
    "could not create a primitive",  # oneDNN, whose scratchpad found no room
    "ALLOC_FAILED",  # cuBLAS, cuDNN
)
"""How libraries below torch say it that raise no error of their own kind for it."""

_TYPES = (MessageType.QUERY, MessageType.TRAIN, MessageType.EVALUATE)

log = logging.getLogger("fedct.site")

app = ClientApp()

_services: dict[Path, tuple[str, SiteService]] = {}
_masks: dict[Path, SiteMasks] = {}


def close_sites(below: Path) -> None:
    """Let go of what this process holds of the sites in a folder: cases, models, masks.

    Args:
        below: A folder with site folders in it, as they are named in contexts.
    """
    for held in (_services, _masks):
        for folder in [folder for folder in held if folder.is_relative_to(below)]:
            del held[folder]


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Answer the roll call."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return _answer(message, context)


@app.evaluate()
def judge(message: Message, context: Context) -> Message:
    """Judge a model."""
    return _answer(message, context)


def work(message: Message, context: Context) -> Message:
    """What leaves for a message, whatever a hub made it: never raises.

    One of a type that the app has no function for is no order, as any other that makes
    none.
    """
    known = message.metadata.message_type in _TYPES
    return app(message, context) if known else _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    try:
        folder = _site_folder(context)
    except FedctError as error:
        log.warning("order not done: %s", error)
        return Message(Error(number_of(error)), reply_to=message)
    reply, why = serve_order(folder, message)
    if why is not None:
        log.warning("order not done: %s", why)
    return reply


def serve_order(folder: Path, message: Message) -> tuple[Message, FedctError | None]:
    """Work on one order.

    Args:
        folder: The site's folder.
        message: The order.

    Returns:
        What leaves; and, for the site's own eyes, why it is only a number.
    """
    order, bytes_in = None, 0
    content = message.content if message.has_content() else RecordDict()
    try:
        bytes_in = payload_bytes(content)
        order = order_in(content)
        return _sealed_answer(folder, order, message, bytes_in), None
    except Exception as error:
        known = _as_known(error)
        number = UNFORESEEN if known is None else number_of(known)
        _note(folder / LOG_FILE, spoken(number), known)
        note_number(folder, number, order, bytes_in)
        what = type(error).__name__
        said = known or EngineError(f"site met {what}; its {LOG_FILE} says more")
        return Message(Error(number), reply_to=message), said


def note_number(
    folder: Path, number: int, order: Order | None = None, bytes_in: int = 0
) -> None:
    """Write down that a number leaves instead of an answer.

    If even that can't be written, the number leaves all the same: it holds nothing that
    must not.
    """
    with suppress(FedctError):
        key = _signing_key(folder)
        note_left(folder, order, key, what="error", code=number, bytes_in=bytes_in)


def _sealed_answer(
    folder: Path, order: Order, message: Message, bytes_in: int
) -> Message:
    key = _signing_key(folder)
    public = public_text(key.public_key())
    answer, plan = _work(folder, order)
    if isinstance(answer, Roster):
        answer = replace(answer, key=public)

    def mask(update: Update) -> MaskedUpdate:
        assert isinstance(order, TrainOrder)
        return _masks_of(folder).mask(order, update, plan)

    grouped = _masks_of(folder).grouped(order) if isinstance(order, OpenOrder) else ()
    answer, grounds = let_out(folder, order, answer, public, mask, grouped)
    digest = digest_of_answer(answer)
    content = to_record(answer)
    mark = note_left(
        folder,
        order,
        key,
        what=type(answer).__name__,
        code=0,
        bytes_in=bytes_in,
        bytes_out=payload_bytes(content),
        digest=digest,
        grounds=grounds,
    )
    asked = asked_of(order, answer.site)
    put_seal(content, seal(answer, asked, key, digest, mark))
    return Message(content, reply_to=message)


def _as_known(error: Exception) -> FedctError | None:
    """The error as one of ours; none if nobody foresaw it."""
    if isinstance(error, OSError):
        return disk_full(error)
    return error if isinstance(error, FedctError) else None


def _note(path: Path, number: str, known: FedctError | None) -> None:
    """Append what went wrong to the site's log, if the disk takes it."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    said = traceback.format_exc() if known is None else f"{known}\n"
    text = f"{when} order not done, error {number}: {said}"
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(text)


def _work(folder: Path, order: Order) -> tuple[Answer, Plan]:
    """The answer to an order, and the plan that it was given by."""

    def tell(done: int, steps: int) -> None:
        if done == 1 and isinstance(order, TrainOrder):
            log.info("first step of round %d of %s", order.round, order.run)
        log.debug("step", extra={"site": folder.name, "done": done, "steps": steps})

    with permitted(folder, order, tell) as (plan, tell_all):
        try:
            answer = _masking(folder, order, plan)
            return answer or _served(folder, order, plan, tell_all), plan
        except Exception as error:
            if not _is_shortage(error):
                raise
            _services.pop(folder, None)  # and with it all that it holds
            patch = "x".join(map(str, plan.training.patch))
            raise OutOfMemoryError(
                f"site ran out of memory with batches of {plan.training.batch_size} "
                f"patches of {patch}, expected room for them; free some on its "
                "machine, or choose a smaller training.batch_size or training.patch"
            ) from error


def _masking(folder: Path, order: Order, plan: Plan) -> Answer | None:
    """What needs no data: the turns of secure aggregation before and after training."""
    match order:
        case KeysOrder():
            return _masks_of(folder).keys(order, plan, min_cohort(folder))
        case SharesOrder():
            return _masks_of(folder).shares(order)
        case OpenOrder():
            return _masks_of(folder).open(order, min_cohort(folder))
        case TrainOrder() if order.sealed:
            return _masks_of(folder).answered(order)
    return None


def _served(folder: Path, order: Order, plan: Plan, tell: Tell) -> Answer:
    service = _service(folder, plan)
    if isinstance(order, Hello):
        return service.hello(order)
    if isinstance(order, JudgeOrder):
        return service.judge(order)
    assert isinstance(order, TrainOrder)
    return service.train(order, tell)


def _is_shortage(error: Exception) -> bool:
    """Whether memory ran out, on the machine or on its GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    short = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return short or (
        isinstance(error, RuntimeError) and any(t in str(error) for t in _SHORTAGES)
    )


def _site_folder(context: Context) -> Path:
    if SITE_FOLDER_KEY in context.node_config:
        return Path(str(context.node_config[SITE_FOLDER_KEY]))
    folders = json.loads(os.environ.get(SITES_VARIABLE, "[]"))
    partition = int(context.node_config.get("partition-id", 0))
    if partition >= len(folders):
        raise EngineError(
            f"node {partition} found no site folder, expected node setting "
            f"{SITE_FOLDER_KEY!r} or variable {SITES_VARIABLE}"
        )
    return Path(folders[partition])


def _service(folder: Path, plan: Plan) -> SiteService:
    """The site's service; another plan than the last one's takes its place."""
    digest, service = _services.get(folder, ("", None))
    if service is None or digest != plan.digest:
        _services.pop(folder, None)
        service = open_site(folder, plan)
        _services[folder] = (plan.digest, service)
    return service


def _masks_of(folder: Path) -> SiteMasks:
    if folder not in _masks:
        name, key = read_site(folder).name, _signing_key(folder)
        _masks[folder] = SiteMasks(folder, name, key)
    return _masks[folder]


@cache
def _signing_key(folder: Path) -> Ed25519PrivateKey:
    return read_signing_key(folder / SIGN_KEY)
