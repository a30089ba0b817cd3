"""What the tests read in README and the guides: fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in a page's bash blocks; those of a pipe by themselves."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            command: list[str] = []
            for word in [*words, "|"]:
                if word in ("|", "&&", ";"):
                    if command:
                        yield command
                    command = []
                else:
                    command.append(word)


def of_tarq(command: list[str]) -> list[str] | None:
    """The arguments of a call of tarq, however it is started; None of another command."""
    words = [*command]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["tarq"] or words[:1] == [".venv/bin/tarq"]:
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["tarq"]:
        return words[words.index("-m") + 2 :]
    return None
