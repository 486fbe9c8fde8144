"""Imports point down only, and the cores do no I/O: the two rules that keep the layers apart.

They are read off the syntax tree, so an import inside a function or for type checking counts too.
"""

import ast
import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = [
    {"cli", "sim", "__main__"},
    {"fuse", "s3door"},
    {"vfs"},
    {"chunks"},
    {"meta"},
    {"raft"},
    {"kv", "wire", "rpc"},
    {"types", "errors", "config", "codec", "inline", "buffers", "tls"},
]
"""From the top down.  A package may import itself and what is below it, not its neighbours."""

NEIGHBOURS = {("cli", "sim"), ("__main__", "cli")}
"""(importer, imported) within one layer: `mountfs sim` runs the simulation."""

VOCABULARY = LAYERS[-1]
"""What everybody may import, and which may import each other."""

CORES = [
    "mountfs.kv.base",
    "mountfs.kv.overlay",
    "mountfs.kv.memory",
    "mountfs.kv.tables",
    "mountfs.meta.keys",
    "mountfs.meta.records",
    "mountfs.meta.tree",
    "mountfs.meta.accounts",
    "mountfs.meta.sums",
    "mountfs.meta.places",
    "mountfs.meta.quota",
    "mountfs.meta.command",
    "mountfs.meta.permission",
    "mountfs.meta.acl",
    "mountfs.meta.locks",
    "mountfs.meta.retention",
    "mountfs.meta.retention_guard",
    "mountfs.meta.proven_time",
    "mountfs.meta.lock_waits",
    "mountfs.meta.extents",
    "mountfs.meta.state_machine",
    "mountfs.meta.ops",
    "mountfs.meta.ops.*",
    "mountfs.raft.config",
    "mountfs.raft.messages",
    "mountfs.raft.quorum",
    "mountfs.raft.log",
    "mountfs.raft.progress",
    "mountfs.raft.state",
    "mountfs.raft.election",
    "mountfs.raft.replication",
    "mountfs.raft.membership",
    "mountfs.raft.reads",
    "mountfs.raft.core",
    "mountfs.raft.rest",
    "mountfs.raft.figures",
    "mountfs.raft.log_record",
    "mountfs.raft.envelope",
    "mountfs.meta.membership_policy",
    "mountfs.meta.hearing",
    "mountfs.meta.reports",
    "mountfs.meta.protocol",
    "mountfs.meta.retry",
    "mountfs.meta.session_watch",
    "mountfs.meta.leases",
    "mountfs.meta.lease_desk",
    "mountfs.meta.reports",
    "mountfs.meta.fleet",
    "mountfs.meta.placement",
    "mountfs.meta.diagnosis",
    "mountfs.meta.treatment",
    "mountfs.meta.health",
    "mountfs.meta.healing",
    "mountfs.meta.healing_*",
    "mountfs.wire.config",
    "mountfs.wire.frames",
    "mountfs.wire.connection",
    "mountfs.rpc.health",
    "mountfs.rpc.identity",
    "mountfs.chunks.config",
    "mountfs.chunks.hedge",
    "mountfs.chunks.health",
    "mountfs.chunks.latency",
    "mountfs.chunks.comparison",
    "mountfs.chunks.needle",
    "mountfs.chunks.pool",
    "mountfs.chunks.telling",
    "mountfs.chunks.volume",
    "mountfs.vfs.extents",
    "mountfs.vfs.readahead",
    "mountfs.vfs.dirty",
    "mountfs.vfs.known",
    "mountfs.vfs.learning",
    "mountfs.fuse.wire",
    "mountfs.tls.authority",
    "mountfs.fuse.options",
]
"""Modules, as patterns, that neither do I/O nor know the time: callers give them what they need."""

OUTSIDE = {"trio", "grpc", "plyvel", "pyfuse3", "socket", "time", "random"}
"""What a core may not import, and neither may any module of ours that it imports."""

Imports = Mapping[str, set[str]]
"""Module -> what it imports, both as dotted names."""


def imports_of(sources: Mapping[str, str]) -> Imports:
    """What each module imports.  `sources`: text by dotted name, a package as `name.__init__`."""
    return {
        module.removesuffix(".__init__"): {
            name if name in sources or f"{name}.__init__" in sources else fallback
            for name, fallback in _imported(module, ast.parse(source))
        }
        for module, source in sources.items()
    }


def _imported(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Pairs: the name if it is a module, and the module that has it if it is not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)


def upward_imports(imports: Imports) -> list[str]:
    """Every import that does not point down, as a sentence."""
    found = []
    for module, imported in imports.items():
        for name in sorted(imported):
            importer, target = _layer_name(module), _layer_name(name)
            if target and not _may_import(importer, target):
                found.append(
                    f"{module} imports {name}: {importer or 'mountfs'} is not above {target}"
                )
    return found


def _layer_name(module: str) -> str:
    """The part of mountfs that a module belongs to; empty for mountfs itself and for others."""
    project, _, rest = module.partition(".")
    return rest.partition(".")[0] if project == "mountfs" else ""


def _may_import(importer: str, target: str) -> bool:
    if importer == target or (importer, target) in NEIGHBOURS:
        return True
    if importer in VOCABULARY:
        return target in VOCABULARY
    return bool(importer) and _depth(importer) < _depth(target)


def _depth(part: str) -> int:
    for depth, layer in enumerate(LAYERS):
        if part in layer:
            return depth
    raise AssertionError(f"mountfs/{part} is in no layer: give it its place in LAYERS")


def impure_cores(imports: Imports) -> list[str]:
    """Every way from a core to something of `OUTSIDE`, as `core -> module -> time`."""
    found = []
    for core in imports:
        if not _is_core(core):
            continue
        ways = [[core]]
        seen = {core}
        while ways:
            way = ways.pop()
            for name in sorted(imports[way[-1]] - seen):
                seen.add(name)
                if name.partition(".")[0] in OUTSIDE:
                    found.append(" -> ".join([*way, name]))
                elif name in imports and name != "mountfs":
                    ways.append([*way, name])
    return found


def _is_core(module: str) -> bool:
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in CORES)


@pytest.fixture(scope="module")
def ours() -> Imports:
    """The imports of mountfs as it is."""
    return imports_of(
        {
            ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
            for path in sorted((ROOT / "mountfs").rglob("*.py"))
        }
    )


def test_imports_point_down_only(ours: Imports) -> None:
    assert upward_imports(ours) == []


def test_every_part_of_the_package_is_in_a_layer(ours: Imports) -> None:
    for module in ours:
        if part := _layer_name(module):
            _depth(part)


def test_the_cores_do_no_io_and_know_no_clock(ours: Imports) -> None:
    assert any(_is_core(module) for module in ours), "no pattern of CORES fits anything"
    assert impure_cores(ours) == []


GOOD = {
    "mountfs.__init__": "",
    "mountfs.types": "import msgspec",
    "mountfs.errors": "from mountfs.types import Ino",
    "mountfs.kv.base": "from mountfs import types\nfrom mountfs.errors import FsError",
    "mountfs.kv.leveldb": "import plyvel\nfrom .base import Store",
    "mountfs.meta.tree": "from mountfs.kv.base import Store",
    "mountfs.meta.client": "import trio\nfrom mountfs.kv import leveldb",
    "mountfs.cli.main": "from mountfs import __version__, sim\nfrom mountfs.meta import client",
}


def test_the_checker_accepts_imports_that_point_down() -> None:
    assert upward_imports(imports_of(GOOD)) == []
    assert impure_cores(imports_of(GOOD)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mountfs.meta.tree", "import mountfs.vfs.handles"),
        ("mountfs.meta.tree", "from mountfs.vfs import handles"),
        ("mountfs.meta.tree", "from mountfs import vfs"),
        ("mountfs.meta.tree", "from ..vfs import handles"),
        ("mountfs.meta.ops.mkdir", "from ...vfs.handles import Handle"),
        ("mountfs.meta.__init__", "from ..vfs import handles"),
        ("mountfs.meta.tree", "def late():\n    from mountfs.vfs import handles"),
        ("mountfs.meta.tree", "if TYPE_CHECKING:\n    from mountfs.vfs import handles"),
        ("mountfs.kv.base", "from mountfs.wire import frames"),  # neighbours
        ("mountfs.types", "from mountfs.kv import base"),
        ("mountfs.__init__", "from mountfs.vfs import handles"),
    ],
)
def test_the_checker_finds_an_import_that_points_up(module: str, source: str) -> None:
    sources = {"mountfs.vfs.__init__": "", "mountfs.wire.__init__": "", **GOOD, module: source}
    assert len(upward_imports(imports_of(sources))) == 1


@pytest.mark.parametrize(
    ("source", "way"),
    [
        ("import time", "mountfs.meta.tree -> time"),
        ("from time import monotonic", "mountfs.meta.tree -> time"),
        ("import trio.socket", "mountfs.meta.tree -> trio.socket"),
        ("def late():\n    import random", "mountfs.meta.tree -> random"),
        ("from .client import Client", "mountfs.meta.tree -> mountfs.meta.client -> trio"),
    ],
)
def test_the_checker_finds_a_core_that_does_io(source: str, way: str) -> None:
    assert way in impure_cores(imports_of({**GOOD, "mountfs.meta.tree": source}))


def test_the_checker_finds_a_part_without_a_layer() -> None:
    with pytest.raises(AssertionError, match="in no layer"):
        upward_imports(imports_of({**GOOD, "mountfs.utils": "from mountfs import types"}))
