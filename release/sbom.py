"""``make sbom``: what an installation of tarq consists of, from the environment that it runs in.

Its argument is an interpreter that has cyclonedx-bom and pip-tools.

Writes ``dist/sbom.json`` (CycloneDX: every package that tarq requires, with version and licence),
``dist/requirements.txt`` (each pinned, with the SHA-256 of its files, for ``pip install --require-hashes``) and
``docs/licences.md``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PAGE = ROOT / "docs" / "licences.md"
#: Of packages that state a text in place of a name.
LONGEST = 60


def required(name: str) -> set[str]:
    """A distribution and all that it requires on this machine, by canonical name."""
    found: set[str] = set()
    asked: list[tuple[str, tuple[str, ...]]] = [(name, ())]
    while asked:
        one, extras = asked.pop()
        if canonicalize_name(one) in found and not extras:
            continue
        found.add(canonicalize_name(one))
        for requirement in map(Requirement, distribution(one).requires or []):
            places = [{"extra": extra} for extra in ("", *extras)]
            meant = requirement.marker is None or any(map(requirement.marker.evaluate, places))
            if meant and canonicalize_name(requirement.name) not in found:
                asked.append((requirement.name, tuple(requirement.extras)))
    return found


def bill(names: set[str], tools: str) -> dict[str, Any]:
    """CycloneDX's bill of the environment, of these packages alone."""
    command = [tools, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", sys.executable]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    made["components"] = [one for one in made["components"] if canonicalize_name(one["name"]) in names]
    for one in made["components"]:  # where a package came from on this machine is nobody's business
        one.pop("externalReferences", None)
    kept = {one["bom-ref"] for one in made["components"]}
    made["dependencies"] = [
        entry | {"dependsOn": [ref for ref in entry.get("dependsOn", []) if ref in kept]}
        for entry in made.get("dependencies", [])
        if entry["ref"] in kept
    ]
    return made


def licence(component: dict[str, Any]) -> str:
    """Its licences by name, as its metadata states them."""
    stated = []
    for entry in component.get("licenses", []):
        one = entry.get("license", {})
        text = entry.get("expression") or one.get("id") or one.get("name") or ""
        stated.append(re.sub(r"^License :: (OSI Approved :: )?", "", text.splitlines()[0] if text else ""))
    return "; ".join(sorted({text for text in stated if text and len(text) <= LONGEST})) or "see its files"


def page(made: dict[str, Any]) -> str:
    """The table of licences."""
    rows = [
        f"| {one['name']} | {one['version'].split('+')[0]} | {licence(one)} |"
        for one in sorted(made["components"], key=lambda one: canonicalize_name(one["name"]))
        if one["name"] != "tarq"
    ]
    return "\n".join(
        [
            "# Licences",
            "",
            "tarq is under Apache-2.0. An installation also has these packages, with the licences that they state;",
            "their files are not part of tarq's wheel. Written by `make sbom`.",
            "",
            "| package | version | licence |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def pinned(made: dict[str, Any], tools: str) -> str:
    """Requirements with hashes, by pip-compile."""
    lines = [f"{one['name']}=={one['version']}" for one in made["components"] if one["name"] != "tarq"]
    source = DIST / "requirements.in"
    source.write_text("\n".join(sorted(lines)) + "\n")
    quiet = ("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-header", "--no-annotate")
    command = [tools, "-m", "piptools", "compile", "-q", "--generate-hashes", "--strip-extras", *quiet]
    command += ["--allow-unsafe", "-o", "-", str(source)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    source.unlink()
    return done.stdout


def main() -> None:
    DIST.mkdir(exist_ok=True)
    (tools,) = sys.argv[1:]
    made = bill(required("tarq"), tools)
    (DIST / "sbom.json").write_text(json.dumps(made, indent=1) + "\n")
    PAGE.write_text(page(made))
    (DIST / "requirements.txt").write_text(pinned(made, tools))
    print(f"{len(made['components'])} packages: dist/sbom.json, dist/requirements.txt, {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
