"""The Python that is checked in is what the contract's text makes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = ("control_pb2.py", "control_pb2_grpc.py")


def test_generated_modules_are_up_to_date(tmp_path):
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools (make install-dev)")
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outputs]
    subprocess.run([*protoc, "common/control.proto"], check=True, cwd=ROOT)
    for name in MADE:
        made = (tmp_path / "common" / name).read_text()
        assert made == (ROOT / "common" / name).read_text(), name
