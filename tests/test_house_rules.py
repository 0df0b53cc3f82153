"""The rules of the house, few and checked: sizes, layers, names, where dangerous things may stand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from allotrope.hw.device import Device
from allotrope.ops import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "allotrope"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

# Who may import whom: a package may import itself and what stands here. The command line, the API and
# the verbs compose, so they may import anything and nothing may import them.
LAYERS = {
    "errors": set(),
    "paths": set(),
    "units": set(),
    "schemas": set(),
    "settings": {"errors"},
    "hw": {"errors", "settings"},
    "native": {"errors", "settings", "hw"},
    "ops": {"errors", "settings", "hw", "native"},
    "artifact": {"errors", "settings", "hw", "native", "ops"},
    "tokenizers": {"errors", "paths", "settings"},
    "models": {"errors", "paths", "settings", "hw", "ops", "artifact"},
    "quant": {"errors", "hw", "ops", "artifact", "models"},
    "runtime": {"errors", "paths", "settings", "units", "hw", "native", "ops", "artifact", "tokenizers"},
    "build": {
        "errors",
        "paths",
        "settings",
        "hw",
        "native",
        "ops",
        "artifact",
        "tokenizers",
        "models",
        "quant",
        "runtime",
    },
    "verify": {
        "errors",
        "paths",
        "settings",
        "units",
        "hw",
        "ops",
        "artifact",
        "tokenizers",
        "models",
        "runtime",
        "build",
    },
    "explain": {"errors", "settings", "units", "hw", "ops", "artifact", "models", "quant", "runtime", "build", "bench"},
    "report": {"errors", "units"},  # results are JSON to it
    "bench": {"errors", "settings", "units", "hw", "native", "ops", "artifact", "models", "runtime", "build", "verify"},
    "ablate": {
        "errors",
        "units",
        "hw",
        "ops",
        "artifact",
        "tokenizers",
        "models",
        "quant",
        "runtime",
        "build",
        "verify",
        "eval",
        "bench",
    },
}
LAYERS["eval"] = LAYERS["verify"] | {"verify"}
COMPOSE = {"cli", "api", "commands", "__main__", "__init__"}
RUNS_WITHOUT_TORCH = (
    "errors",
    "settings",
    "hw",
    "native",
    "artifact",
    "models",
    "tokenizers",
    "runtime",
    "bench",
    "commands",
    "api",
    "cli",
)


def layer(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module of ours that a tree imports, `allotrope.` taken off."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def where(path: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def test_files_fit_in_the_head() -> None:
    everything = [*SOURCES, *ROOT.glob("tests/**/*.py")]
    long = {where(path): n for path in everything if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_functions_fit_a_screen() -> None:
    long = {
        where(path, node): node.name
        for path, tree in TREES.items()
        for node in functions(tree)
        if (node.end_lineno or 0) - node.lineno + 1 > 70
    }
    assert not long


def test_imports_point_one_way() -> None:
    wrong = []
    for path, tree in TREES.items():
        here = layer(path)
        if here in COMPOSE:
            continue
        assert here in LAYERS, f"{path} is in no layer: name it in LAYERS"
        for module in imports(tree):
            if module.startswith("allotrope."):
                there = module.split(".")[1]
                if there != here and there not in LAYERS[here] and there != "__version__":
                    wrong.append(f"{where(path)} imports {module}")
    assert not wrong


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_make_no_circle() -> None:
    """Inside a layer too, and late imports counted: whoever reads a module first needs nothing that comes after it."""
    known = {module_name(path) for path in SOURCES}
    needs: dict[str, set[str]] = {}
    for path, tree in TREES.items():
        found = {name if name in known else name.rpartition(".")[0] for name in imports(tree)}
        needs[module_name(path)] = (found & known) - {module_name(path)}
    try:
        tuple(TopologicalSorter(needs).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("area", RUNS_WITHOUT_TORCH)
def test_importing_loads_no_torch(area: str) -> None:
    """Importing does nothing heavy; torch arrives when something runs."""
    modules = [module_name(path) for path in SOURCES if layer(path) == area]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_no_global_statement_and_no_assert_for_checking() -> None:
    wrong = [
        where(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Global, ast.Assert))
    ]
    assert not wrong


def test_broad_excepts_raise_again() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"(bare)"}
                broad = names & {"Exception", "BaseException", "(bare)"}
                if broad and not any(isinstance(child, ast.Raise) for child in ast.walk(node)):
                    wrong.append(where(path, node))
    assert not wrong


def test_the_environment_is_read_in_one_place() -> None:
    wrong = [
        where(path, node)
        for path, tree in TREES.items()
        if layer(path) != "settings"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert not wrong


# Rule 1 of the fault list: each dangerous thing in one file. Template rendering, pickles and what models wrote
# run in subprocesses of their own.
DANGEROUS = {
    "pickle": set(),
    "eval": set(),
    "exec": {"allotrope/eval/code_worker.py"},
    "torch.load": {"allotrope/models/readers/pickle_worker.py"},
}


def test_dangerous_calls_stand_where_they_may() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            name = ""
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
            elif isinstance(node, ast.Import) and any(alias.name == "pickle" for alias in node.names):
                name = "pickle"
            if name in DANGEROUS and str(path.relative_to(ROOT)) not in DANGEROUS[name]:
                wrong.append(f"{where(path, node)} {name}")
    assert not wrong


def test_every_op_is_whole() -> None:
    for op in registry.names():
        contract = registry.contract(op)
        assert contract.name == op
        assert contract.ins and contract.outs
        assert callable(contract._module().reference)
        assert callable(contract._module().make_inputs)
        tactics = registry.tactics(op)
        assert tactics, f"{op} has no tactic"
        assert len({tactic.name for tactic in tactics}) == len(tactics)
        for tactic in tactics:
            assert tactic.op == op
            assert tactic.version >= 1


def test_every_tactic_answers_for_itself() -> None:
    """For every problem that a real plan poses, on either kind of device: a sentence or None, and no exception."""
    from allotrope.artifact.problems import problem
    from allotrope.build.tasks import load
    from allotrope.models.lower import lower
    from allotrope.models.model import open_model

    devices = (Device("cpu", "test", "x86_64", 2, 2**33), Device("cuda", "test", "sm_90", 132, 2**37))
    seen = set()
    for shape in ("galactica-125m", "qwen-7b", "llama-15m"):
        for dtype in ("fp32", "bf16"):
            plan = lower(open_model(f"random:{shape}").recipe, dtype)
            for call in plan.calls:
                posed = problem(plan, call, load(8, plan.max_len))
                seen.add(posed.op)
                cost = registry.contract(posed.op).cost(posed)
                assert cost.bytes > 0 and cost.flops >= 0, posed.key()
                answers = [t.why_not(posed, device) for t in registry.tactics(posed.op) for device in devices]
                assert all(answer is None or len(answer.split()) > 2 for answer in answers), answers
                assert None in answers, f"no tactic serves {posed.key()}"
    made = {
        "linear_add",
        "linear_activation",
        "add_norm",
        "linear_codes",
        "linear_stored",
        "embed_codes",
        "embed_stored",
        "reorder",
    }  # by fusing, and by narrower formats
    assert seen | made == set(registry.names())


NO_TOLERANCES = {
    ("records.py", 1e-3),  # a column of verify's table, which decides nothing
    ("meta_config.py", 1e-6),  # the epsilon by which LLaMA 1 is known
}


def test_tolerances_stand_in_one_place() -> None:
    """No `allclose`, `isclose` or `assert_close` in the package, and no small number beside a comparison."""
    wrong = []
    for path, tree in TREES.items():
        if path == PACKAGE / "ops" / "check.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in {"allclose", "isclose", "assert_close"}:
                wrong.append(where(path, node))
            if isinstance(node, ast.Compare):
                small = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
                tight = [n for n in small if 0 < abs(n.value) < 0.005]
                wrong += [where(path, n) for n in tight if (path.name, n.value) not in NO_TOLERANCES]
    assert not wrong


def test_nothing_stands_unused() -> None:
    """Every function, class and constant of the package is named somewhere else, in the package or its API."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    words = Counter(re.findall(r"\w+", text))
    unused = []
    for path, tree in TREES.items():
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [n.id for n in targets if isinstance(n, ast.Name)]
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            unused += [f"{where(path, node)} {name}" for name in names if words[name] == 1]
    assert not unused


def test_importing_does_nothing() -> None:
    """Modules only define: no call stands by itself at the top, and nothing is printed, opened or started."""
    wrong = [
        where(path, node)
        for path, tree in TREES.items()
        if path.name != "__main__.py"
        for node in tree.body
        if isinstance(node, (ast.While, ast.With)) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    ]
    assert not wrong


def test_no_family_restates_its_parent() -> None:
    """A derived family states what differs: no declaration may equal the parent's."""
    from allotrope.models import family as families

    for child in families.all_families():
        if child.parent is None:
            continue
        parent = families.by_name(child.parent)
        own = child.stated
        same = [name for name, value in own.items() if parent.stated.get(name) == value and name not in {"parent"}]
        assert not same, f"{child.name} restates {same} of {child.parent}"


DOCS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_paths_named_in_the_docs_exist(page: Path) -> None:
    """Every back-ticked path of ours in the docs is there."""
    named = set(re.findall(r"`((?:allotrope|tests|docs|bench|tools|models|native)/[\w./-]*)`", page.read_text("utf-8")))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_the_way_from_generate_to_launch_is_short() -> None:
    """STYLE 2: what a token passes through, from the user's call to the tactic, in at most 200 lines."""
    path = {
        "api.py": ("generate",),
        "runtime/loop.py": ("submit", "step", "_launch", "_take"),
        "runtime/scheduler.py": ("plan_step", "_make_room"),
        "runtime/eager.py": ("launch", "_launch"),
    }
    lines = 0
    for name, wanted in path.items():
        found = [node for node in functions(TREES[PACKAGE / name]) if node.name in wanted]
        assert {node.name for node in found} == set(wanted), f"{name} has other names: bring this path up to date"
        lines += sum((node.end_lineno or 0) - node.lineno + 1 for node in found)
    assert lines <= 200


def test_no_two_headers_of_the_core_define_the_same_function() -> None:
    """Their sources are linked together, and of two such functions the linker keeps one, whatever the other returns."""
    found: dict[tuple[str, ...], set[str]] = {}
    for path in sorted((ROOT / "native" / "core").glob("*.h")):
        for name, given in re.findall(
            r"^(?:ALLOTROPE_INLINE|inline) [\w:<>&* ]*?(\w+)\(([^)]*)\) \{", path.read_text(), re.M
        ):
            types = (re.sub(r"\s*\b\w+$", "", one.strip()) for one in given.split(","))
            found.setdefault((name, *types), set()).add(path.name)
    assert len(found) > 30
    assert not {signature: files for signature, files in found.items() if len(files) > 1}


def test_what_is_left_out_of_the_package_is_no_part_of_it() -> None:
    """A name without a slash leaves out folders of that name everywhere, `allotrope/models` too."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]
    assert all(name.startswith("/") for name in settings["sdist"]["exclude"])
