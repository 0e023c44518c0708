"""Does every module import only from its own folder or from a lower storey?"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "convscope"
STOREYS = [
    {"core"},
    {"pictures", "records"},
    {"lens", "scale"},
    {"trace"},
    {"network"},
    {"attribution", "representations", "training", "drawing"},
    {"metrics", "visualisation"},
    {"study entries"},
    {"study records"},
    {"studies", "study figures"},
    {"pages"},
    {"cli", "viewer"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
WITHOUT_TORCH = {
    *(
        "core",
        "pictures",
        "records",
        "drawing",
        "study entries",
        "study records",
        "study figures",
        "pages",
    ),
}
COMPUTE = {
    *("network", "lens", "trace", "attribution", "representations", "metrics"),
    *("visualisation", "training", "scale", "studies"),
}
DRAW = {"drawing", "study figures", "pages"}
ROOMS = {
    "__init__": "study entries",
    "record": "study records",
    "figure": "study figures",
    "table": "study figures",
}
"""Files of a study's folder that are a room of their own; the rest computes."""
TORCH = {"torch", "torchvision", "lightning", "timm"}


def imports(code: str) -> set[str]:
    """Dotted names of all that the code imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(parts: tuple[str, ...]) -> str:
    """parts: a module's place below the package, and perhaps a name in it."""
    if parts[0] != "studies":
        return parts[0]
    if parts[1:2] in (("base",), ("registry",)):
        return "study entries"
    inner = parts[2] if len(parts) > 2 else "__init__"
    return ROOMS.get(inner, "study entries" if inner[0].isupper() else "studies")


def violations(folder: str, code: str) -> list[str]:
    found = []
    for name in sorted(imports(code)):
        parts = name.split(".")
        if parts[0] in TORCH and folder in WITHOUT_TORCH:
            found.append(f"{folder} is in the wing without torch, imports {name}")
        if parts[0] != "convscope" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        other = room(tuple(parts[1:]))
        if {folder, other} & COMPUTE and {folder, other} & DRAW:
            found.append(f"{folder} and {other} meet only in records")
        if other != folder and LEVEL[other] >= LEVEL[folder]:
            found.append(f"{folder} imports {name}, which is not on a lower storey")
    return found


def test_modules_import_downwards_and_keep_torch_in_its_wing() -> None:
    found = []
    front = SOURCE / "__init__.py"
    modules = [path for path in SOURCE.rglob("*.py") if path != front]
    for path in modules:
        folder = room(path.relative_to(SOURCE).with_suffix("").parts)
        assert folder in LEVEL, f"{path} stands in no storey"
        found += [f"{path.name}: {fault}" for fault in violations(folder, path.read_text())]
    assert len(modules) >= 8
    assert found == []


def test_a_planted_violation_is_found() -> None:
    assert violations("drawing", "from convscope.attribution import cam")
    assert violations("attribution", "import convscope.drawing.plots")
    assert violations("records", "def f():\n    import torch")
    assert violations("studies", "from convscope.drawing import plots")
    assert violations("study records", "from convscope.studies.filters.study import filters")
    assert violations("studies", "from convscope.studies.filters.figure import filters_figure")
    assert violations("study figures", "import torch")
    assert not violations("pages", "from convscope.studies.filters.figure import filters_figure")
    assert not violations("attribution", "import torch\nfrom convscope.lens.lens import Lens")


def on_loading(path: Path, modules: set[str]) -> set[str]:
    """The modules that one imports when it is loaded itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {str(node.module)} & modules
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {name: on_loading(path, set(paths)) for name, path in paths.items()}
    assert sum(map(len, graph.values())) > len(graph)
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
