"""The structure of the package, kept by reading its imports."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("worker_adapters").origin).parent

#: Lowest first. A module imports modules of lower rows, or to its left in its own row.
ROWS = [
    ["late", "errors", "timeouts", "jsonvalue", "frames", "message", "task", "report"],
    ["clocks", "cancel", "retry"],
    ["contract", "tally", "plan", "driver", "stream"],
    [
        "wire.http1", "wire.sse", "wire.delta", "wire.prometheus", "wire.stops", "wire.openai_faults", "wire.openai",
        "wire.openai_body", "wire.responses", "wire.llamacpp", "wire.tgi_tools", "wire.tgi", "wire.triton_model",
        "wire.triton", "wire.triton_infer", "wire.triton_grpc",
    ],
    [
        "transport.network", "transport.redact", "transport.endpoint", "transport.faults", "transport.connection",
        "transport.pool", "transport.reader", "transport.control",
    ],
    ["transport_grpc.inbox", "transport_grpc.channel", "transport_grpc.call", "transport_grpc.control"],
    [
        "adapters.framer", "adapters.rules", "adapters.identity", "adapters.sessions", "adapters.asking",
        "adapters.jobs", "adapters.streaming", "adapters.over_http", "adapters.over_grpc", "adapters.base",
        "adapters.openai_rules", "adapters.openai_routes", "adapters.triton_models",
        "adapters.llamacpp", "adapters.vllm", "adapters.tgi", "adapters.triton", "adapters.triton_grpc",
        "adapters.openai", "adapters.mock", "adapters.detect", "adapters.catalog",
    ],
    [
        "host.breaker", "host.replica", "host.ticket", "host.placement", "host.pool", "host.buffer", "host.jobs",
        "host.workers", "host.observe", "host.mapping", "host.route", "host.config", "host.host",
    ],
    ["simulate", "embedded", "cli", "testing.stand", "testing.conformance"],
    ["contrib"],
]  # fmt: skip
#: The adapters of one engine each: tables of its facts.
ENGINES = (
    "adapters.llamacpp", "adapters.vllm", "adapters.tgi", "adapters.triton", "adapters.triton_grpc", "adapters.openai",
)  # fmt: skip
PLACE = {name: (row, column) for row, names in enumerate(ROWS) for column, name in enumerate(names)}

#: Files over 400 lines, and why.
ROOMY = {
    "testing.conformance": "the contract as tests is one list, and a class cannot be split over files",
    "embedded.llamacpp": "a process's whole life: start, readiness, pause, kill, and its error messages",
}
#: Imports of ours inside a function: each needs a reason.
LATE = {"cli": "commands load what they need, so that --help is quick and a missing extra is a clear line"}


@cache
def modules():
    """(dotted name below the package, its syntax tree) of each."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [(".".join(p.relative_to(PACKAGE).with_suffix("").parts), ast.parse(p.read_text())) for p in paths]


def home(name):
    """The row entry a module belongs to; None for package files without code of their own."""
    parts = name.removesuffix(".__init__").split(".")
    for length in range(len(parts), 0, -1):
        candidate = ".".join(parts[:length])
        if candidate in PLACE:
            return candidate
    return None


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
def imports(tree):
    """(imported name, is it inside a function) of every import that runs."""
    return list(_imports(tree))


def _imports(tree):
    pending = [(tree, False)]
    while pending:
        node, late = pending.pop()
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, late
            yield from ((f"{node.module}.{alias.name}", late) for alias in node.names)
        late = late or isinstance(node, (ast.FunctionDef, ast.Lambda))
        pending += [(child, late) for child in ast.iter_child_nodes(node)]


def own_imports():
    for name, tree in modules():
        if name in ("__init__", "__main__"):
            continue
        for imported, late in imports(tree):
            if imported.startswith("worker_adapters."):
                yield name, imported.removeprefix("worker_adapters."), late


def test_every_module_has_a_place():
    """A new module is given its level before it is merged."""
    known = {
        "__init__",
        "__main__",
        "wire.__init__",
        "transport.__init__",
        "adapters.__init__",
        "testing.__init__",
        "transport_grpc.__init__",
        "host.__init__",
    }
    assert [name for name, _ in modules() if home(name) is None and name not in known] == []


def test_imports_point_down_or_left():
    """No module imports one of a higher level, or one to its right on its own. Nothing imports contrib."""
    wrong = []
    for name, imported, _ in own_imports():
        here, there = home(name), home(imported)
        if here and there and here != there and PLACE[there] > PLACE[here]:
            wrong.append(f"{name} imports {imported}")
    assert sorted(set(wrong)) == []


def test_no_import_hides_in_a_function():
    """The package's own imports stand at the top, except where a reason is written down."""
    hidden = {name for name, imported, late in own_imports() if late and home(imported)}
    assert {name for name in hidden if home(name) not in LATE} == set()


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("wire.", {"socket", "ssl", "threading", "time", "requests", "urllib3", "select", "os", "subprocess"}),
        ("simulate", {"worker_adapters", "requests", "urllib3", "httptools", "msgspec"}),
        *((engine, {"socket", "threading", "time", "requests", "urllib3", "json"}) for engine in ENGINES),
        ("host", {"requests", "urllib3", "socket", "httptools"}),
        ("contrib", {"requests", "urllib3", "socket", "httptools", "threading"}),
    ],
)
def test_layers_keep_to_themselves(layer, forbidden):
    """Wire code does no I/O, simulators share nothing with the decoders, adapters hold no transport."""
    wrong = []
    for name, tree in modules():
        if name.startswith(layer):
            for imported, _ in imports(tree):
                top = imported.split(".")[0]
                if top in forbidden and not imported.startswith("worker_adapters.simulate"):
                    wrong.append(f"{name} imports {imported}")
    if layer in ENGINES:
        wrong = [line for line in wrong if "worker_adapters" not in line]
    assert wrong == []


def test_sockets_live_in_transport_alone():
    """Nothing below the tools but ``transport`` knows sockets, and only ``clocks`` reads a clock."""
    tools = ("simulate", "embedded", "cli", "testing")
    wrong = []
    for name, tree in modules():
        if name.startswith(tools):
            continue
        tops = {imported.split(".")[0] for imported, _ in imports(tree)}
        if tops & {"socket", "ssl", "select"} and not name.startswith("transport."):
            wrong.append(f"{name}: sockets")
        if "time" in tops and name != "clocks":
            wrong.append(f"{name}: time")
    assert wrong == []


def test_an_engine_adapter_is_a_table():
    """An engine's adapter holds no loop, no thread and no ``try``."""
    for name, tree in modules():
        if name in ENGINES:
            found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While, ast.Try))]
            assert found in ([], ["For"]), f"{name} holds {found}"


def test_nothing_is_too_long():
    """Files stay under 400 lines and functions under 60, docstrings aside: longer ones hide a second noun."""
    wrong = []
    for name, tree in modules():
        lines = (PACKAGE / (name.replace(".", "/") + ".py")).read_text().count("\n")
        if lines > 400 and name not in ROOMY:
            wrong.append(f"{name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node
                if node.end_lineno - first.lineno >= 60:
                    wrong.append(f"{name}.{node.name}: {node.end_lineno - first.lineno + 1} lines")
    assert wrong == []


def test_no_async():
    """The library is synchronous: no event loop anywhere."""
    for name, tree in modules():
        assert not any(isinstance(node, (ast.AsyncFunctionDef, ast.Await)) for node in ast.walk(tree)), name
        assert "asyncio" not in {imported.split(".")[0] for imported, _ in imports(tree)}, name
