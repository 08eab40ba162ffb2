"""The arrows between the packages, held in place."""

import ast
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "client", "server", "deploy")
ALLOWED = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "deploy": {"client", "common", "deploy", "server"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_design_allows(package):
    assert modules(package)
    for path in modules(package):
        ours = {n.split(".")[0] for n in imports(path)} & set(PACKAGES)
        assert ours <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {ours}"


def test_there_are_no_import_cycles():
    graph = {}
    for package in PACKAGES:
        for path in modules(package):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            graph[name.removesuffix(".__init__")] = imports(path)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for other in graph[name] & graph.keys():
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_plain_top_level_names_belong_to_us_alone():
    owners = packages_distributions()
    for package in PACKAGES:
        others = {o for o in owners.get(package, []) if o != "fedct"}
        assert not others, f"{package} is also installed by {others}"


def test_no_module_is_a_drawer():
    for package in PACKAGES:
        for path in modules(package):
            assert path.stem not in {"utils", "helpers", "base", "manager", "misc"}
            assert len(path.read_text().splitlines()) <= 350, path
            assert ast.get_docstring(ast.parse(path.read_text())), path


PINNED_TO_FLOWER = {
    "client/echo.py",
    "client/fleet.py",
    "client/node_key.py",
    "client/refusals.py",
    "common/pieces.py",
    "server/hub_grid.py",
    "server/superlink.py",
}
"""The line between site and hub: the modules that a new Flower may break."""


def test_few_modules_reach_for_private_parts_of_flower():
    for package in ("common", "client", "server"):
        for path in modules(package):
            private = {n for n in imports(path) if n.startswith("flwr.super")}
            known = f"{package}/{path.name}" in PINNED_TO_FLOWER
            assert known == bool(private), f"{path} imports {private}"
