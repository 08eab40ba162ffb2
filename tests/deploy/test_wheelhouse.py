"""A wheelhouse holds what was asked for and all it needs; pip takes nothing else."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.wheelhouse import lock


def write_wheel(folder: Path, name: str, version: str, needs: str = "") -> Path:
    """A wheel with one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in files.items():
        digest = hashlib.sha256(text.encode()).digest()
        coded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        record = f"{path},sha256={coded},{len(text)}\n" + record
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A folder that pip takes for the world: alpha 1.0 and 2.0, which needs beta."""
    folder = tmp_path_factory.mktemp("index")
    for version in ("1.0", "2.0"):
        write_wheel(folder, "alpha", version, needs="beta>=0.5")
    write_wheel(folder, "beta", "0.7+cpu")
    return folder


def run(index: Path, *command: object) -> subprocess.CompletedProcess:
    """Run Python with a pip that sees nothing but the index."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    pip = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        check=False,
        env={**clean, **pip, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )


def pack(index: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    return run(index, "-m", "deploy.wheelhouse", folder, *arguments)


def install(wheelhouse: Path, target: Path) -> subprocess.CompletedProcess:
    """As the how-to says, into a folder of its own."""
    words = ["--no-index", "--find-links", wheelhouse, "--require-hashes"]
    words += ["-r", wheelhouse / "requirements.txt", "--target", target]
    return run(wheelhouse, "-m", "pip", "install", "--isolated", *words)


@pytest.fixture(scope="module")
def packed(index, tmp_path_factory) -> Path:
    """Made from the index, pinned by constraints."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "constraints.txt").write_text("alpha==1.0\n")
    pins = ("--constraints", folder / "constraints.txt")
    ended = pack(index, folder / "wheelhouse", "alpha", *pins)
    assert ended.returncode == 0, ended.stderr
    return folder / "wheelhouse"


@pytest.fixture
def wheelhouse(packed, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(packed, tmp_path / "wheelhouse")


def test_it_holds_the_constrained_version_and_what_that_needs(wheelhouse):
    lines = (wheelhouse / "requirements.txt").read_text().splitlines()
    assert (
        lines[0] == f"# 2 wheels for Python {sys.version_info[0]}.{sys.version_info[1]}"
    )
    for line, name in zip(lines[1:], ("alpha==1.0", "beta==0.7+cpu"), strict=True):
        pin, digest = line.split(" --hash=sha256:")
        assert pin == name
        wheel = wheelhouse / f"{name.replace('==', '-')}-py3-none-any.whl"
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == digest
    assert len(list(wheelhouse.iterdir())) == 3


def test_what_was_packed_is_what_is_installed(wheelhouse, tmp_path):
    write_wheel(wheelhouse, "alpha", "9.0")  # slipped in afterwards
    ended = install(wheelhouse, tmp_path / "site")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "site/alpha.py").read_text() == "version = '1.0'\n"
    assert (tmp_path / "site/beta.py").exists()


def test_a_swapped_wheel_is_not_installed(wheelhouse, tmp_path):
    swapped = wheelhouse / "beta-0.7+cpu-py3-none-any.whl"
    with zipfile.ZipFile(swapped, "a") as archive:
        archive.writestr("evil.py", "print('hello')\n")
    ended = install(wheelhouse, tmp_path / "site")
    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr
    assert not (tmp_path / "site").exists()


def test_a_wheel_that_was_left_out_is_missed(wheelhouse, tmp_path):
    (wheelhouse / "beta-0.7+cpu-py3-none-any.whl").unlink()
    ended = install(wheelhouse, tmp_path / "site")
    assert ended.returncode != 0
    assert "beta" in ended.stderr
    assert not (tmp_path / "site").exists()


def test_nothing_is_left_of_a_wheelhouse_that_could_not_be_filled(index, tmp_path):
    before = sorted(tmp_path.iterdir())
    ended = pack(index, tmp_path / "wheelhouse", "alpha", "gamma")
    assert ended.returncode == 2
    assert "expected a wheel for every requirement" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_exists_is_not_touched(index, tmp_path):
    (tmp_path / "wheelhouse").mkdir()
    ended = pack(index, tmp_path / "wheelhouse", "alpha")
    assert ended.returncode == 2
    assert "expected a new folder" in ended.stderr
    assert list((tmp_path / "wheelhouse").iterdir()) == []


def test_the_same_wheels_give_the_same_requirements(wheelhouse):
    before = (wheelhouse / "requirements.txt").read_bytes()
    lock(wheelhouse)
    assert (wheelhouse / "requirements.txt").read_bytes() == before
