"""Ways to die at a place (points of the hub)."""

import os
import random
import signal
import threading
import time
from typing import Any


def within_20_ms(what: Any, order: Any, past: list[Any]) -> Any:
    """SIGKILL to oneself at an instant of the next 20 ms, while the work goes on."""
    delay_s = random.SystemRandom().uniform(0.0, 0.02)

    def die() -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die).start()
    return what
