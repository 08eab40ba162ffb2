"""Stock Flower's deployment: SuperLink and SuperNodes with TLS and node keys.

The app is FedAvg from Flower's own strategies over four numbers; nothing is imported
but flwr and numpy, so a round is Flower's own. The server's app writes down when each
round was aggregated.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.superlink import SuperLinkAddress, SuperLinkLine
from tests.bench.on_this_machine import ENVIRONMENT, free_port, program, until
from tests.federation.pki import Authority

BIN = Path(sys.executable).parent
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "trivial"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "trivial.server:app"
clientapp = "trivial.client:app"
[tool.flwr.app.config]
rounds = 1
times = ""
nodes = 4
"""
SERVER = """import json, time
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
times = []
class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, replies)
        times.append(time.time())
        return result
@app.main()
def main(grid, context):
    config = context.run_config
    nodes = config["nodes"]
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=nodes,
                     min_available_nodes=nodes)
    strategy.start(grid, ArrayRecord([np.zeros(4, np.float32)]),
                   num_rounds=config["rounds"])
    with open(config["times"], "w") as file:
        json.dump(times, file)
"""
CLIENT = """from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    content = RecordDict({"arrays": message.content["arrays"],
                          "metrics": MetricRecord({"num-examples": 10})})
    return Message(content, reply_to=message)
"""


@dataclass(frozen=True)
class Stock:
    """A running deployment."""

    root: Path
    env: dict[str, str]

    def round_ends(self, rounds: int) -> list[float]:
        """Run the app; when each round was aggregated, seconds since 1970."""
        times = self.root / "times.json"
        times.unlink(missing_ok=True)
        config = f'rounds={rounds} times="{times}"'
        subprocess.run(
            [BIN / "flwr", "run", self.root / "app", "lab", "-c", config],
            env=self.env,
            check=True,
            capture_output=True,
        )
        until(times.exists, 600.0)
        until(lambda: times.read_text().endswith("]"), 10.0)
        return [float(when) for when in json.loads(times.read_text())]


@contextmanager
def stock(root: Path, nodes: int = 4) -> Iterator[Stock]:
    """Start SuperLink and SuperNodes, and wait until all are online."""
    root.mkdir()
    _write_app(root / "app")
    authority = Authority(root / "ca")
    pair = authority.issue("loopback", hosts=("localhost", "127.0.0.1"))
    port, secret = free_port(), os.urandom(32)
    (root / "secret").write_bytes(secret)
    ca = authority.certificate
    home = root / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "lab"\n[superlink.lab]\n'
        f'address = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n'
    )
    env = {
        **ENVIRONMENT,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }
    superlink = [
        *(str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)),
        *("--ssl-ca-certfile", str(ca), "--database", str(root / "state.db")),
        "--enable-supernode-auth",
    ]
    with ExitStack() as stack:
        stack.enter_context(program(superlink, root / "superlink.log", env=env))
        line = SuperLinkLine(SuperLinkAddress(port, ca, secret))
        stack.enter_context(line)
        until(line.is_up, 120.0)
        for number in range(nodes):
            key = _node_key(root / f"node-{number}", line)
            node = [
                *(str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{port}"),
                *("--root-certificates", str(ca)),
                *("--auth-supernode-private-key", str(key)),
                *("--host", "127.0.0.1", "--port", str(free_port())),
            ]
            log = root / f"supernode-{number}.log"
            stack.enter_context(program(node, log, env=env))
        until(lambda: _all_online(line), 600.0)
        yield Stock(root, env)


def _all_online(line: SuperLinkLine) -> bool:
    with suppress(httpx.HTTPError):  # a SuperLink that is busy
        return all(on for _, on in line.nodes().values())
    return False


def _node_key(path: Path, line: SuperLinkLine) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    line.register(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


def _write_app(folder: Path) -> None:
    (folder / "trivial").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "trivial" / "__init__.py").write_text("")
    (folder / "trivial" / "server.py").write_text(SERVER)
    (folder / "trivial" / "client.py").write_text(CLIENT)
