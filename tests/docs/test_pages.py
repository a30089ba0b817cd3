"""README and the guides are true: commands, Python and links are of what there is, the figure is what was measured."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
import typer
import yaml

import tarq
from tarq.terminal.cli import app

from .pages import PAGES, ROOT, blocks, commands, of_tarq

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
#: Programs of others that the pages start.
OTHERS = ("pip", "python", "make", "torchrun", "TARQ_SKIP_EXTENSION=1", "cat", "ffmpeg", "find", "echo", "for", "cd")
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@named
def test_commands_are_ours_with_options_that_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    for command in commands(page):
        arguments = of_tarq(command)
        if arguments is None:
            assert command[0] in OTHERS, command
            continue
        name, *rest = arguments
        if name.startswith("-"):
            continue
        assert name in group.commands, command
        group.commands[name].make_context(name, rest)  # raises on an unknown option or an impossible value


@named
def test_targets_extras_and_scripts_exist(page):
    for command in commands(page):
        if command[0] == "make":
            for target in (word for word in command[1:] if "=" not in word):
                assert re.search(rf"^{target}:", MAKEFILE, re.M), target
        if command[0] == "python" and command[1].endswith(".py"):
            assert (ROOT / command[1]).is_file(), command
    for name in re.findall(r"tarq\[([\w,]+)\]", page.read_text()):
        assert set(name.split(",")) <= set(EXTRAS), name
    for target in re.findall(r"`make ([a-z-]+)`", page.read_text()):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target


@named
def test_python_is_python_and_names_what_there_is(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tarq":
                assert hasattr(tarq, node.attr), f"tarq.{node.attr}"


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "benchmarks").rglob("*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "#")):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w-]", "", head.lower().replace(" ", "-")) for head in heads}, target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_sites_navigation():
    def paths(entry):
        if isinstance(entry, dict):
            entry = [*entry.values()]
        return [entry] if isinstance(entry, str) else [path for one in entry for path in paths(one)]

    flat = set(paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {str(page.relative_to(ROOT)) for page in PAGES} <= flat
    assert all((ROOT / path).is_file() for path in flat)


def test_readmes_figure_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study.figure import OUT, panels, svg

    assert OUT.read_text() == svg(panels()) + "\n", "make figures draws it again"


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == tarq.__version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_licences_name_every_requirement():
    named = (ROOT / "docs" / "licences.md").read_text().lower()
    setup = ast.parse((ROOT / "setup.py").read_text())
    (listed,) = (n.value for n in setup.body if isinstance(n, ast.Assign) and n.targets[0].id == "REQUIREMENTS")
    for requirement in ast.literal_eval(listed):
        assert f"| {requirement.split('>')[0]} |" in named, requirement
