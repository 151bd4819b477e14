"""The direction of imports, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"ltdi": {"training", "service"}, "training": {"service"}, "service": {"training"}}


def imported(file: Path) -> set[str]:
    """Top-level names of the packages that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_against_the_direction(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    against = {str(file.relative_to(ROOT)): imported(file) & FORBIDDEN[package] for file in files}
    assert files and not {file: names for file, names in against.items() if names}
