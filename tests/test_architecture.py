"""Does every module import only from its own folder or from a lower storey?"""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "convscope"
STOREYS = [
    {"errors"},
    {"units", "publish", "texts", "foreign"},
    {"pictures", "records"},
    {"lens"},
    {"network"},
    {"methods", "training", "scale", "figures"},
    {"studies", "pages"},
    {"cli", "viewer"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
WITHOUT_TORCH = {
    *("errors", "units", "publish", "texts", "foreign"),
    *("pictures", "records", "figures", "pages"),
}
COMPUTE = {"network", "lens", "methods", "training", "scale", "studies"}
DRAW = {"figures", "pages"}
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


def violations(folder: str, code: str) -> list[str]:
    found = []
    for name in sorted(imports(code)):
        parts = name.split(".")
        if parts[0] in TORCH and folder in WITHOUT_TORCH:
            found.append(f"{folder} is in the wing without torch, imports {name}")
        if parts[0] != "convscope" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        if {folder, parts[1]} & COMPUTE and {folder, parts[1]} & DRAW:
            found.append(f"{folder} and {parts[1]} meet only in records")
        if parts[1] != folder and LEVEL[parts[1]] >= LEVEL[folder]:
            found.append(f"{folder} imports {name}, which is not on a lower storey")
    return found


def test_modules_import_downwards_and_keep_torch_in_its_wing() -> None:
    found = []
    modules = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    for path in modules:
        folder = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        assert folder in LEVEL, f"{path} stands in no storey"
        found += [f"{path.name}: {fault}" for fault in violations(folder, path.read_text())]
    assert len(modules) >= 8
    assert found == []


def test_a_planted_violation_is_found() -> None:
    assert violations("figures", "from convscope.methods import cam")
    assert violations("methods", "import convscope.figures.plots")
    assert violations("records", "def f():\n    import torch")
    assert violations("studies", "from convscope.figures import plots")
    assert not violations("methods", "import torch\nfrom convscope.lens.lens import Lens")
