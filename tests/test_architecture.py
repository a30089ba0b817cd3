"""Imports go the way that docs/architecture.md draws them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"\w+(/|\.py)")


def order() -> list[str]:
    """Folders and files of the package from top to bottom, as the page lists them."""
    block = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    inside = block[block.index("tarq/") : block.index("\nkernels/")]
    listed = []
    for line in inside.splitlines()[1:]:  # names stand on the left, before what is said of them
        listed += [word.rstrip("/").removesuffix(".py") for word in takewhile(NAME.fullmatch, line.split())]
    return [*listed, "kernels"]


def imported(file: Path, module: list[str]) -> Iterator[str]:
    """First names below ``tarq`` that a file imports, at any depth of its code."""
    package = module if file.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("tarq."))


def test_the_page_lists_the_whole_package():
    there = {p.stem for p in (ROOT / "tarq").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    listed = order()
    assert len(listed) == len(set(listed))
    assert set(listed) == there | {"kernels"}


def test_modules_import_only_what_is_below_them():
    listed = order()
    below = {name: {*listed[i:], "kernels", "errors", "version"} for i, name in enumerate(listed)}
    below["kernels"] = {"kernels", "errors", "version"}
    wrong, seen = [], 0
    for folder in ("tarq", "kernels"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = list(file.relative_to(ROOT).with_suffix("").parts)
            module = [part for part in (["tarq", *parts] if folder == "kernels" else parts) if part != "__init__"]
            if len(module) == 1:
                continue  # `import tarq` offers what all the others hold
            for name in imported(file, module):
                seen += 1
                if name in listed and name not in below[module[1]]:
                    wrong.append(f"{'.'.join(module)} imports {name}")
    assert seen > 500
    assert wrong == []


def test_each_package_imports_in_one_style():
    """``from tarq.errors import …`` in tarq/; relatively in kernels/, which is installed under another name."""
    wrong = []
    for folder in ("tarq", "kernels"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                relative = isinstance(node, ast.ImportFrom) and node.level > 0
                whole = isinstance(node, ast.Import) and any(alias.name.startswith("tarq.") for alias in node.names)
                ours = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tarq"
                if whole or (relative if folder == "tarq" else ours):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_what_needs_one_concern_takes_no_whole_configuration():
    """Words, data and scoring take the settings of their concern (:meth:`tarq.TarqConfig.part`)."""
    files = [file for folder in ("words", "data", "scoring") for file in (ROOT / "tarq" / folder).rglob("*.py")]
    assert len(files) > 20
    assert [file.name for file in files if "TarqConfig" in file.read_text()] == []
