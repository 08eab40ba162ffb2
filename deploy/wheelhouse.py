"""A folder with every wheel that FedCT needs, for machines without a network.

`make wheelhouse` fills it where there is a network; a hospital installs from it with
pip alone, and the container images are built from nothing else. Beside the wheels lies
`requirements.txt` with the sha256 of each, so that pip refuses one that was damaged,
swapped or added on the way:

    cd wheelhouse
    pip install --no-index --find-links . --require-hashes -r requirements.txt

Not covered here: whether the wheels are good. The hashes say that what is installed is
what was packed; carry the sha256 of `requirements.txt` by another road to know by whom.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from packaging.utils import parse_wheel_filename

from common.errors import FedctError, UsageError

REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Pin:
    """One wheel, as a line of `requirements.txt` names it."""

    name: str
    """The project, normalised."""
    version: str
    """Its version, with the local part ("2.13.0+cpu") where it has one."""
    sha256: str
    """Of the whole file."""

    def line(self) -> str:
        """As pip reads it in its hash-checking mode."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def make_wheelhouse(
    folder: Path, requirements: list[str], constraints: Path | None
) -> list[Pin]:
    """Gather the wheels of requirements and of all they depend on; lock them.

    For the Python and platform that this runs on. pip takes its indexes, certificates
    and proxy from its own configuration.

    Args:
        folder: Must not exist; is whole or absent afterwards.
        requirements: As pip takes them: names, folders, wheels.
        constraints: Exact versions, a file for pip's `-c`.

    Returns:
        The wheels, by name.

    Raises:
        UsageError: The folder exists or can't be made, or pip could not get a wheel.
    """
    if folder.exists():
        raise UsageError(
            f"wheelhouse got {folder.name!r}, which exists, expected a new folder; "
            "remove it or choose another name"
        )
    partial = _folder_beside(folder)
    try:
        _run_pip(partial, requirements, constraints)
        pins = lock(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return pins


def lock(folder: Path) -> list[Pin]:
    """Write `requirements.txt` for the wheels that lie in the folder."""
    pins = sorted(map(_pin, folder.glob("*.whl")), key=lambda pin: pin.name)
    python = ".".join(map(str, sys.version_info[:2]))
    head = f"# {len(pins)} wheels for Python {python}\n"
    content = head + "".join(pin.line() for pin in pins)
    (folder / REQUIREMENTS).write_text(content, encoding="utf-8")
    return pins


def _pin(wheel: Path) -> Pin:
    name, version, _, _ = parse_wheel_filename(wheel.name)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Pin(str(name), str(version), digest)


def _folder_beside(folder: Path) -> Path:
    """An empty folder on the same disk, to be renamed when it is whole."""
    try:
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"wheelhouse got a place that can't be written to ({error.strerror}), "
            "expected a folder of yours; choose another"
        ) from error


def _run_pip(folder: Path, requirements: list[str], constraints: Path | None) -> None:
    """Fill the folder; what is published as source only is built here, once."""
    command = [sys.executable, "-m", "pip", "wheel", "--progress-bar", "off"]
    command += ["--wheel-dir", str(folder)]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    command += ["--", *requirements]
    ended = subprocess.run(command, check=False, stdout=sys.stderr)
    if ended.returncode:
        raise UsageError(
            f"pip ended with {ended.returncode}, expected a wheel for every "
            "requirement; its own words above say which one is missing"
        )


def main(
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    requirements: Annotated[
        list[str] | None, typer.Argument(help="What to pack. [default: FedCT here]")
    ] = None,
    constraints: Annotated[
        Path | None, typer.Option(exists=True, help="Exact versions, a file.")
    ] = None,
) -> None:
    """Pack every wheel that an installation without a network needs.

    Example: `python -m deploy.wheelhouse wheelhouse --constraints constraints.txt`
    """
    try:
        pins = make_wheelhouse(folder, requirements or ["."], constraints)
    except FedctError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    size_bytes = sum(path.stat().st_size for path in folder.glob("*.whl"))
    digest = hashlib.sha256((folder / REQUIREMENTS).read_bytes()).hexdigest()
    typer.echo(f"{len(pins)} wheels, {size_bytes / 1e6:.0f} MB in {folder}")
    typer.echo(f"sha256 of {REQUIREMENTS}: {digest}")


if __name__ == "__main__":
    typer.run(main)
