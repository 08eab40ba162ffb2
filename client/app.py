"""The Flower ClientApp: messages in, `SiteService` calls, messages out.

The same object runs in every engine. It finds its site by the node's configuration:
`site-folder` where the engine can say it, or `FEDCT_SITES` (a JSON list of folders, by
partition) in workers that only know a number. Services stay open for the life of the
process, so a site is loaded once.

A deliberate failure travels as its number and sentence, which hold no patient data by
the rule of `common.errors`. Anything else, a traceback with whatever values stand in
it, stays in the site's own log; only its kind travels. Every answer is sealed with the
site's key (`common.signing`).
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
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.open_site import open_site
from client.private_files import FILE_MODE
from client.rules import permitted, record
from client.service import SiteService
from client.site import LOG_FILE, SIGN_KEY
from common.canonical import digest_of_answer
from common.errors import (
    ERROR_BASE,
    EngineError,
    FedctError,
    OutOfMemoryError,
    StoreError,
)
from common.exchange import Answer, Hello, JudgeOrder, Order, Roster, TrainOrder
from common.keys import read_signing_key
from common.plan import Plan
from common.signing import asked_of, public_text, seal
from common.wire import from_record, payload_bytes, to_record

SITES_VARIABLE = "FEDCT_SITES"
SITE_FOLDER_KEY = "site-folder"

_SHORTAGES = (
    "can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "not enough memory",
    "out of memory",  # CUDA's own
    "ALLOC_FAILED",  # cuBLAS, cuDNN
)
"""How libraries below torch say it that raise no error of their own kind for it."""

log = logging.getLogger("fedct.site")

app = ClientApp()

_services: dict[Path, tuple[str, SiteService]] = {}


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


def _answer(message: Message, context: Context) -> Message:
    try:
        folder = _site_folder(context)
        order = _order(message)
    except FedctError as error:
        return _failure(message, error)
    bytes_in = payload_bytes(message.content)
    try:
        key = _signing_key(folder)
        answer = _work(folder, order)
        if isinstance(answer, Roster):
            answer = replace(answer, key=public_text(key.public_key()))
        digest = digest_of_answer(answer)
        asked = asked_of(order, answer.site)
        content = to_record(answer, seal(answer, asked, key, digest))
        record(
            folder,
            order,
            code=0,
            bytes_in=bytes_in,
            bytes_out=payload_bytes(content),
            sha256=digest.hex(),
        )
        return Message(content, reply_to=message)
    except Exception as error:
        return _error_answer(message, folder, order, bytes_in, error)


def _error_answer(
    message: Message, folder: Path, order: Order, bytes_in: int, error: Exception
) -> Message:
    """Say that it went wrong, and no more than may leave."""
    known = isinstance(error, FedctError)
    if not known:
        _note(folder / LOG_FILE)
        what = type(error).__name__
        error = EngineError(f"site failed with {what}; its {LOG_FILE} says more")
    assert isinstance(error, FedctError)
    code = error.exit_code if known else 1
    with suppress(StoreError):  # the number holds nothing that must not leave
        record(folder, order, code=code, bytes_in=bytes_in)
    return Message(Error(ERROR_BASE + code, str(error)), reply_to=message)


def _note(path: Path) -> None:
    """Append the traceback at hand to the site's log, if the disk takes it."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = f"{when} order failed\n{traceback.format_exc()}"
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(text)


def _failure(message: Message, error: FedctError) -> Message:
    return Message(Error(ERROR_BASE + error.exit_code, str(error)), reply_to=message)


def _order(message: Message) -> Order:
    kind = message.metadata.message_type
    if kind == "query":
        return from_record(message.content, Hello)
    if kind == "evaluate":
        return from_record(message.content, JudgeOrder)
    return from_record(message.content, TrainOrder)


def _work(folder: Path, order: Order) -> Answer:
    def tell(done: int, steps: int) -> None:
        if done == 1 and isinstance(order, TrainOrder):
            log.info("first step of round %d of %s", order.round, order.run)
        log.debug("step", extra={"site": folder.name, "done": done, "steps": steps})

    with permitted(folder, order, tell) as (plan, tell_all):
        try:
            service = _service(folder, plan)
            if isinstance(order, Hello):
                return service.hello(order)
            if isinstance(order, JudgeOrder):
                return service.judge(order)
            return service.train(order, tell_all)
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


@cache
def _signing_key(folder: Path) -> Ed25519PrivateKey:
    return read_signing_key(folder / SIGN_KEY)
