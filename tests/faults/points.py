"""Places in the real processes at which a fault happens; run inside them.

    python -m tests.faults.points start-hub HUB        as `fedct server start HUB`
    python -m tests.faults.points start-client SITE    as `fedct client start SITE`
    python -m tests.faults.points MODULE FOLDER        as `python -m MODULE FOLDER`

The first two are the product's own supervisors; only the runner and the service are
started through the third, which is the product's own `main` with a few of its functions
wrapped. A wrapped function does what it always does, unless the file `points.json` in
`FEDCT_FAULTS_CONTROL` names its place. It is read anew each time, so the exam puts a
fault in while the processes run.

    place       where                                                  kinds
    begin       site: an order was accepted, no work done yet          all
    training    site: after a round's first step                       train
    made        site: the answer is made, did not pass the gate yet    all
    answer      site: the answer passed the gate, is not signed        all
    message     site: the signed message is about to be pushed         all
    order       hub: orders (a record for each site) go out            all
    checkpoint  hub: a checkpoint is about to be written               -
    written     hub: it is written, the journal does not know yet      -
    committed   hub: the round is in the journal                       -

What to do there is "hold" (stand still until the point is taken out again), "die"
(SIGKILL to oneself), or "module:function", which gets `(what, order, past)` and returns
what to go on with: the answer at "made" and "answer", a list of messages at "message".
`past` are the messages of training orders that were answered before.

All bodies that a site sends and receives over HTTP, decrypted, go to `wire.bin`.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.powerloss import SYNCS, count_syncs

CONTROL = "FEDCT_FAULTS_CONTROL"
TIMES = "FEDCT_FAULTS_TIMES"
"""JSON: "module:NAME" to the number that it has in place of the product's own."""
PRELOAD = "FEDCT_FAULTS_PRELOAD"
"""A library to load into the hub's runner, see `tests.faults.powerloss`."""
POINTS, WIRE = "points.json", "wire.bin"


@dataclass(frozen=True)
class Point:
    """One place, and what happens there."""

    at: str
    """Name of the place."""
    do: str
    """"hold", "die" or "module:function"."""
    round: int | None = None
    """Only in this round; unset: in each."""
    kind: str = "train"
    """Of the order: "hello", "keys", "shares", "train", "open" or "judge"."""

    @property
    def key(self) -> str:
        """Name of the file that says that the process stands there."""
        return f"at-{self.at}-{self.kind}-{self.round}"


def set_points(control: Path, points: Sequence[Point]) -> None:
    """Say what happens from now on; who is held at a point that is gone goes on."""
    temporary = control / "points.tmp"
    temporary.write_text(json.dumps([asdict(point) for point in points]))
    temporary.replace(control / POINTS)


def read_points(control: Path) -> list[Point]:
    """What is to happen now."""
    try:
        return [Point(**row) for row in json.loads((control / POINTS).read_text())]
    except FileNotFoundError:
        return []


class Places:
    """What the wrapped functions of one process ask."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self.order: Any = None
        self.past: list[Any] = []

    def reach(self, at: str, what: Any = None, *, kind: str = "train", number: int = 0):
        """Be at a place; returns what to go on with."""
        for point in read_points(self._control):
            named = point.at == at and point.kind == kind
            if not named or point.round not in (None, number):
                continue
            (self._control / point.key).write_text(str(os.getpid()))
            if point.do == "hold":
                while point in read_points(self._control):
                    time.sleep(0.02)
                (self._control / point.key).unlink(missing_ok=True)
            elif point.do == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                module, _, name = point.do.partition(":")
                change = getattr(importlib.import_module(module), name)
                what = change(what, self.order, self.past)
        return what


def _about(order: Any) -> dict[str, Any]:
    """Kind and round of an order, as a point names them."""
    from common.exchange import Hello, JudgeOrder, KeysOrder, OpenOrder, SharesOrder

    kinds = {
        Hello: "hello",
        JudgeOrder: "judge",
        KeysOrder: "keys",
        SharesOrder: "shares",
        OpenOrder: "open",
    }
    kind = kinds.get(type(order), "train")
    return {"kind": kind, "number": getattr(order, "round", 0)}


def in_site(places: Places, control: Path) -> None:
    """Wrap what a site's service is made of."""
    import httpx

    from client import app, service
    from client.fleet import Fleet

    work, let_out, train, push, send = (
        app._work,
        app.let_out,
        service.train_round,
        Fleet.push,
        httpx.Client.send,
    )

    def work_(folder: Path, order: Any) -> Any:
        places.order = order
        places.reach("begin", **_about(order))
        return work(folder, order)

    def let_out_(folder: Path, order: Any, answer: Any, *more: Any) -> Any:
        answer = places.reach("made", answer, **_about(order))
        answer, grounds = let_out(folder, order, answer, *more)
        return places.reach("answer", answer, **_about(order)), grounds

    def train_(*args: Any, progress: Callable[[int, int], None], **more: Any) -> Any:
        def told(done: int, steps: int) -> None:
            if done == 1:
                places.reach("training", **_about(places.order))
            progress(done, steps)

        return train(*args, progress=told, **more)

    def push_(self: Fleet, answer: Any, seconds: float) -> None:
        order = _about(places.order)
        for message in places.reach("message", [answer], **order):
            push(self, message, seconds)
        if order["kind"] == "train":
            places.past.append(answer)

    lock = threading.Lock()

    def send_(self: httpx.Client, request: httpx.Request, **more: Any) -> Any:
        response = send(self, request, **more)
        with lock, (control / WIRE).open("ab") as wire:
            wire.write(request.content + b"\n" + response.read() + b"\n")
        return response

    app._work, app.let_out = work_, let_out_
    service.train_round, Fleet.push = train_, push_
    httpx.Client.send = send_


def in_hub(places: Places, control: Path) -> None:
    """Wrap what the hub's runner does for a round."""
    from server import asking, rounds

    append, write = rounds.append, rounds.write_checkpoint
    encode = asking.to_records

    def encode_(orders: Any) -> Any:
        places.order = next(iter(orders.values()), None)
        return places.reach("order", encode(orders), **_about(places.order))

    def append_(journal: Any, entry: Any) -> None:
        append(journal, entry)
        if SYNCS in os.environ:  # how many syncs had been done when it was committed
            done = count_syncs(Path(os.environ[SYNCS]))
            (control / f"committed-{entry.record.number}").write_text(str(done))
        places.reach("committed", number=entry.record.number)

    def write_(folder: Path, number: int, state: Any) -> str:
        places.reach("checkpoint", number=number)
        digest = write(folder, number, state)
        places.reach("written", number=number)
        return digest

    rounds.append, rounds.write_checkpoint = append_, write_
    asking.to_records = encode_


def start(verb: str, folder: Path) -> None:
    """A supervisor whose runner or service is started through this module."""
    from deploy import start as product

    supervise, stop = product.supervise, threading.Event()

    def ours(program: Any) -> Any:
        if program.name not in ("runner", "service"):
            return program
        python, flag, *rest = program.argv
        env = dict(program.env)
        if PRELOAD in os.environ and program.name == "runner":
            env["LD_PRELOAD"] = os.environ[PRELOAD]
        return replace(program, argv=(python, flag, __spec__.name, *rest), env=env)

    def through_us(folder: Path, programs: Sequence[Any], *more: Any) -> None:
        supervise(folder, [ours(program) for program in programs], *more)

    product.supervise = through_us
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: end with the exam
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run = product.start_hub if verb == "start-hub" else product.start_client
    run(folder, stop, lambda line: print(line, flush=True))


def main() -> None:
    what, folder = sys.argv[1:]
    if what.startswith("start-"):
        start(what, Path(folder))
        return
    control = Path(os.environ[CONTROL])
    for name, seconds in json.loads(os.environ.get(TIMES, "{}")).items():
        module, _, constant = name.partition(":")
        loaded = importlib.import_module(module)
        assert hasattr(loaded, constant), f"{module} has no {constant}"
        setattr(loaded, constant, seconds)
    places = Places(control)
    if what == "client.resident":
        in_site(places, control)
    else:
        in_hub(places, control)
    sys.argv = [what, folder]
    importlib.import_module(what).main()


if __name__ == "__main__":
    main()
