"""The help in panels, shell completion, and exit codes that scripts can rely on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tarq.terminal import exits
from tarq.terminal.cli import PANELS, app

runner = CliRunner()


def complete(words, shell="bash"):
    """What a shell is told to complete the last of some words with."""
    environment = os.environ | {
        "_TARQ_COMPLETE": f"complete_{shell}", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": " ".join(words),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from tarq.terminal.cli import main; import sys; sys.argv = ['tarq']; main()"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_shell_completes_commands_and_options():
    assert complete(["tarq", "qu"]) == ["quantize"]
    assert complete(["tarq", "evaluate", "--max-"]) == [
        "--max-bad", "--max-wer-increase", "--max-rare-wer-increase", "--max-protected-wer-increase",
    ]  # fmt: skip


def test_completion_imports_no_torch(tmp_path):
    """It runs at every press of the key."""
    program = (
        "import os, sys; os.environ.update(_TARQ_COMPLETE='complete_bash', COMP_WORDS='tarq qu', COMP_CWORD='1');"
        "sys.argv = ['tarq']\n"
        "from tarq.terminal.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'wordfreq') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["quantize", "[]"]


def test_every_command_is_under_a_heading():
    commands = get_command(app).commands
    assert sorted(commands) == sorted(module.__name__.rpartition(".")[2] for some in PANELS.values() for module in some)
    said = runner.invoke(app, ["--help"], terminal_width=80).output
    assert [title for title in PANELS if f"─ {title} ─" in said] == list(PANELS)
    places = {title: said.index(f"─ {title} ─") for title in PANELS}
    assert places["Results"] < said.index("│ evaluate") < places["Speech and words"] < said.index("│ words")
    assert "--show-completion" in said


@pytest.mark.parametrize("command", ["quantize", "evaluate", "compare", "words"])
def test_options_of_large_commands_are_in_groups(command):
    """No more than a screenful without a heading."""
    parameters = [p for p in get_command(app).commands[command].params if p.param_type_name == "option"]
    loose = [p.name for p in parameters if not p.rich_help_panel]
    assert len(loose) <= 6
    assert len({p.rich_help_panel for p in parameters}) > 1


def test_every_exit_code_is_in_the_help():
    said = " ".join(runner.invoke(app, ["--help"], terminal_width=200).output.split())
    assert exits.HELP in said
    for code in exits.Exit:
        assert f"{int(code)} " in exits.HELP
    assert len({int(code) for code in exits.Exit}) == len(exits.Exit)


def test_the_page_has_every_exit_code_and_every_option_it_shows():
    page = (Path(__file__).parents[2] / "docs" / "words.md").read_text()
    table = page[page.index("| code |") :]
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")}
    assert codes == {int(code) for code in exits.Exit}
    commands = get_command(app).commands
    shown = re.findall(r"^tarq (\w+) (.*?)(?: +# .*)?$", page, re.M)
    assert {name for name, _ in shown} == {"words", "evaluate", "quantize", "compare"}
    for name, rest in shown:
        known = {option for p in commands[name].params for option in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, (name, rest)
