"""The commands of README and the guides run, in the order they stand, on the testbed in place of what they name."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from tarq import testbed
from tarq.terminal.cli import app

from .pages import ROOT, blocks, commands, of_tarq

PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("quickstart", "calibrate", "rare-words", "evaluate", "large-models", "deploy", "corpora")
    ),
]
#: Command to options behind its own, which make it small.
SMALL = {
    "quantize": ["--samples", "4", "--batch-size", "4"],
    "pool": ["--samples", "6", "--overwrite"],
    "evaluate": ["--samples", "6", "--resamples", "50"],
    "demo": ["--samples", "2", "--score", "4", "--bits", "4"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder to work in, and what stands in place of the models and speech that the pages name."""
    folder = tmp_path_factory.mktemp("reader")
    root = testbed.root()
    rows = [json.loads(line) for line in (root / "calibration" / "manifest.jsonl").read_text().splitlines()[:12]]
    own = [row | {"audio": str(root / "calibration" / row["audio"])} for row in rows]
    (folder / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (folder / "recordings").mkdir()
    for row in own[:6]:
        shutil.copy(row["audio"], folder / "recordings")
    shutil.copy(own[0]["audio"], folder / "talk.mp3")
    words = {word for row in rows for word in row["text"].split()}
    (folder / "counts.txt").write_text("".join(f"{word} {3 + len(word)}\n" for word in sorted(words)) + "the 900000\n")
    model = str(testbed.model())
    corpora = dict.fromkeys(("LibriSpeech/train-clean-100", "LibriSpeech:train-clean-100"), str(root / "calibration"))
    return folder, {
        "openai/whisper-small": model,
        "openai/whisper-large-v3": model,
        "LibriSpeech/test-other": str(root / "test"),
        **corpora,
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_run(places, monkeypatch):
    folder, instead = places
    monkeypatch.chdir(folder)
    done: list[list[str]] = []
    for page in PAGES:
        for command in commands(page):
            arguments = of_tarq(command)
            if arguments is None or command[0] == "torchrun" or arguments in done:
                continue
            done.append(arguments)
            name, *rest = (instead.get(word, word) for word in arguments)
            if name == "quantize" and "--dry-run" not in rest:
                shutil.rmtree(folder / rest[1], ignore_errors=True)
            result = CliRunner().invoke(app, [name, *rest, *SMALL.get(name, [])], catch_exceptions=True)
            assert result.exit_code == 0, f"{page.name}: {' '.join(arguments)}\n{result.output}"
    assert {arguments[0] for arguments in done} >= {"quantize", "evaluate", "transcribe", "inspect", "pool", "report"}
    assert (folder / "page.html").is_file()


@pytest.mark.slow
def test_python_runs(places, monkeypatch, capsys):
    """README's and the quickstart's, which loads what README's has saved."""
    folder, instead = places
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / "whisper-small-w4", ignore_errors=True)
    for page in PAGES[:2]:
        for block in blocks(page, "python"):
            for name, place in {**instead, "calibration.jsonl": "calls.jsonl"}.items():
                block = block.replace(f'"{name}"', f'"{place}"')
            exec(compile(block, page.name, "exec"), {})
    assert len(eval(capsys.readouterr().out.splitlines()[-1])[0].split()) > 3
