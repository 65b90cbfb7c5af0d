"""The arrows between the rooms of vae_lib, read from its imports: see docs/architecture.md."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vae_lib"

# Each room, and those that it may import beside itself and the single modules on the ground (errors, files, units).
ROOMS: dict[str, set[str]] = {
    "device": set(),
    "catalog": set(),
    "networks": {"device"},
    "engine": {"device", "networks"},
    "planning": {"device", "networks", "engine"},
    "decode": {"device", "networks", "engine", "planning"},
    "checkpoints": {"device", "networks", "catalog"},
    "hub": {"catalog", "checkpoints"},
    "ui": {"device", "networks", "engine", "planning", "decode", "checkpoints", "hub"},
    "cli": {"device", "networks", "engine", "planning", "decode", "catalog", "checkpoints", "hub", "ui"},
    "guard": {"device", "networks", "engine", "planning", "decode", "catalog", "checkpoints"},
    "hosts": {"device", "engine", "catalog", "checkpoints", "guard"},
    "webui": {"device", "engine", "planning", "decode", "catalog", "hub", "ui", "guard"},
}
HOSTS_PACKAGES = {"modules", "modules_forge", "backend", "ldm_patched"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Of the file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, late or not."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: say the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_what_lies_below(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        parts = [*name.split("."), ""]
        if parts[0] == "vae_lib" and room in ROOMS and parts[1] in ROOMS and parts[1] != room:
            assert parts[1] in ROOMS[room], f"{room} -> {parts[1]} ({name})"
        if room != "hosts":
            assert parts[0] not in HOSTS_PACKAGES, f"only hosts may import {name}"
        if room not in ("ui", "cli", "hosts", "webui"):
            assert parts[0] != "gradio", "only what has a page knows gradio"


def test_nothing_imports_in_a_circle() -> None:
    known = {name_of(path): path for path in MODULES}

    def module(name: str) -> str | None:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or None

    graph = {
        name: {found for wanted in imports(path) if (found := module(wanted)) and found not in (name, "vae_lib")}
        for name, path in known.items()
        if path.name != "__init__.py"  # a room's front door
    }
    doors = {name_of(path) for path in MODULES if path.name == "__init__.py"}
    try:
        list(TopologicalSorter({name: found - doors for name, found in graph.items()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def floors(room: str) -> int:
    """Modules of the room on the longest way down through its own imports."""
    known = {name_of(path): path for path in MODULES if path.relative_to(PACKAGE).parts[0] == room}

    @functools.cache
    def depth(name: str) -> int:
        inner = {
            found
            for wanted in imports(known[name])
            if (found := wanted if wanted in known else wanted.rpartition(".")[0]) in known and found != name
        }
        return 1 + max(map(depth, inner), default=0)

    return max(depth(name) for name in known if not name.endswith(room))


def test_the_house_stays_low() -> None:
    low = ("device", "engine", "planning", "decode", "hosts", "webui")
    assert {room: floors(room) for room in low if floors(room) > 7} == {}
    for room in (*low, "guard"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path.name


def test_nobody_outside_of_device_asks_what_kind_a_device_is() -> None:
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] == "device":
            continue
        for node in nodes(path):
            if isinstance(node, ast.Compare):
                asked = ast.unparse(node)
                assert "device.type" not in asked, f"{path}: {asked}"


def test_no_if_outside_of_hosts_names_a_host() -> None:
    for path in MODULES:
        if path.parent.name == "hosts":
            continue
        for node in nodes(path):
            if isinstance(node, (ast.If, ast.IfExp)):
                asked = ast.unparse(node.test).lower()
                assert not any(host in asked for host in ("a1111", "forge", "automatic1111")), f"{path}: {asked}"
