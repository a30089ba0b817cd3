"""Options of the command line: made from the configuration, readable at 80 columns, each named in its own error."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner
from typer.utils import get_params_from_function

from tarq.config import TarqConfig
from tarq.option import options
from tarq.presets import PRESETS
from tarq.terminal.cli import app
from tarq.terminal.commands import PLACES

runner = CliRunner()
FIELDS = options(TarqConfig)
COMMANDS = ("quantize", "evaluate", "compare", "report", "pool", "words", "transcribe", "inspect", "demo", "bench")
COMMANDS += ("doctor",)


def plain(text: str) -> str:
    """Without colours, boxes and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_whole_at_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = runner.invoke(app, [*command, "--help"], terminal_width=80)
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    if not command:
        assert "130" in result.output  # exit codes are explained
        return
    said = plain(result.output)
    for parameter in get_command(app).commands[command[0]].params:
        for name in (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option" else ():
            assert name in said


@pytest.mark.parametrize("name", [n for n, field in FIELDS.items() if field.kind not in ("bool", "names", "widths")])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x", ""])
def test_a_wrong_option_is_named_before_any_work(name, value, tmp_path):
    """Whatever the configuration refuses of a field, the command line refuses by the option's name, without a model."""
    if value and (FIELDS[name].kind in ("path", "entries") or (FIELDS[name].kind, len(value)) == ("language", 3)):
        return  # any text may be a path, and any three letters a language
    option = f"--{name.replace('_', '-')}"
    result = runner.invoke(app, ["quantize", str(tmp_path / "no-model"), str(tmp_path / "out"), option, value])
    assert result.exit_code == 2
    said = plain(result.output)
    assert option in said
    assert "must be" in said
    assert repr(value) in said or value in ("nan", "inf", "-1")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["pool", "speech", "--max-duration", "nan"], "--max-duration"),
        (["pool", "speech", "--kind", "best"], "--kind"),
        (["evaluate", "m", "--data", "d", "--resamples", "0"], "--resamples"),
        (["evaluate", "m", "--data", "d", "--samples", "-3"], "--samples"),
        (["evaluate", "m", "--data", "d", "--tail-threshold", "nan"], "--tail-threshold"),
        (["demo", "--bits", "5"], "--bits"),
        (["quantize", "m", "o", "--bits", "encoder=5"], "'encoder=5'"),
        (["quantize", "m", "o", "--bits", "encoder="], "'encoder='"),
        (["quantize", "m", "o", "--bits", "encoder=8,encoder=4"], "each place once"),
        (["quantize", "m", "o", "--bits", "3,encoder=8,4"], "each place once"),
        (["demo", "--score", "x"], "--score"),
        (["bench", "--seconds", "nan"], "--seconds"),
        (["words", "text", "--rows", "-1"], "--rows"),
        (["transcribe", "m", "a.wav", "--dtype", "int8"], "--dtype"),
        (["transcribe", "m", "a.wav", "--device", "gpu"], "--device"),
        (["quantize", "m", "o", "--method", "best"], "--method"),
        (["inspect", "m", "--json", "/nowhere/x.json"], "--json"),
    ],
)
def test_other_options_name_themselves_too(arguments, option):
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert option in plain(result.output)


def test_what_is_not_given_leaves_the_preset_alone(monkeypatch, tmp_path):
    """No default of the command line overrides a preset; what is given does."""
    import tarq.terminal.quantize as command

    seen = []
    monkeypatch.setattr(command, "_dry_run", lambda model, config, *rest: seen.append(config))
    for method in PRESETS:
        base = ["quantize", "model", str(tmp_path / "out"), "--dry-run", "--method", method]
        assert runner.invoke(app, base).exit_code == 0
        more = ["--damp", "0.02", "--asymmetric", "--ignore", "a", "--ignore", "b"]
        assert runner.invoke(app, [*base, *more]).exit_code == 0
        plain_run, changed = seen[-2:]
        assert plain_run == TarqConfig.preset(method)
        given = {"damp": 0.02, "symmetric": False, "ignore": ("a", "b")}
        assert changed == TarqConfig.preset(method, **given)


def test_every_field_can_be_set(monkeypatch, tmp_path):
    """Each option reaches its field, in the field's own type."""
    import tarq.terminal.quantize as command

    seen = []
    monkeypatch.setattr(command, "_dry_run", lambda model, config, *rest: seen.append(config))
    values = {
        "bits": 3, "group_size": 64, "scale_rule": "mse", "scale_dtype": "float32", "metric": "random",
        "cost_ratio": 0.5, "max_lambda": 9.0, "residual": 0.5, "solver": "rtn", "damp": 0.1, "act_order": "static",
        "input_scales": "awq", "reparametrize": "both", "tail_bands": 2,
        "tail_positions": "either", "frame_tags": "aligned", "padding_weight": 0.3, "tail_threshold": 4.0,
        "language": "de", "word_frequencies": "w.txt", "protect": "names.txt", "normalizer": "none",
        "ids": "ids.txt", "samples": 7, "max_positions": 99,
        "transcripts": "self", "timestamps": "with", "max_bad": 2, "target_bits": 4.25, "seed": 5,
        "batch_size": 3, "activation_memory": 1.5,
    }  # fmt: skip
    assert set(values) | {"symmetric", "ignore", "pool", "bits_for"} == set(FIELDS)
    arguments = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    result = runner.invoke(app, ["quantize", "model", str(tmp_path / "out"), "--dry-run", *arguments])
    assert result.exit_code == 0, result.output
    assert seen == [TarqConfig(**values)]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("3", {"bits": 3}),
        ("encoder=8,decoder=3", {"bits_for": {"encoder": 8, "decoder": 3}}),
        ("2,*.fc2=8", {"bits": 2, "bits_for": {"*.fc2": 8}}),
        ("encoder=8,2", {"bits": 2, "bits_for": {"encoder": 8}}),
    ],
)
@pytest.mark.parametrize("method", ["refined", "gptq"])
def test_bits_by_place(monkeypatch, tmp_path, text, fields, method):
    import tarq.terminal.quantize as command

    seen = []
    monkeypatch.setattr(command, "_dry_run", lambda model, config, *rest: seen.append(config))
    arguments = ["quantize", "model", str(tmp_path / "out"), "--dry-run", "--method", method, "--bits", text]
    assert runner.invoke(app, arguments).exit_code == 0
    assert seen == [TarqConfig.preset(method, **fields)]
    assert list(seen[0].bits_for.items()) == list(fields.get("bits_for", {}).items())  # the last that matches counts


def places() -> list:
    """Every command's arguments and options that name a file, a folder or a model."""
    return [
        pytest.param(name, parameter, id=f"{name} {parameter.opts[0]}")
        for name, command in get_command(app).commands.items()
        for parameter in command.params
        if parameter.metavar in PLACES
    ]


@pytest.mark.parametrize("blank", ["", " "])
@pytest.mark.parametrize(("name", "parameter"), places())
def test_an_empty_place_is_refused_by_name(name, parameter, blank, monkeypatch, tmp_path):
    """It would stand for the current folder, which here holds what could be taken or overwritten."""
    monkeypatch.chdir(tmp_path)
    others = {"quantize": ["m", "o"], "evaluate": ["m", "--data", "d"], "report": ["r", "--out", "o"], "pool": ["s"]}
    others |= {"transcribe": ["m", "a"], "inspect": ["c"], "words": ["t"], "compare": ["a", "b"]}
    words = (others | {"bench": [], "demo": [], "doctor": []})[name]
    if parameter.param_type_name == "option":
        words = [*words, parameter.opts[0], blank]
        called = parameter.opts[0]
    else:
        order = [p for p in get_command(app).commands[name].params if p.param_type_name == "argument"]
        words = [*(blank if p.name == parameter.name else "x" for p in order), *words[len(order) :]]
        called = parameter.metavar
    result = runner.invoke(app, [name, *words])
    assert result.exit_code == 2, result.output
    said = plain(result.output)
    assert called in said
    assert "must be a path or a name, not ''" in said or "must be the path of a file" in said
    assert not list(tmp_path.iterdir())


def test_every_path_is_among_the_places():
    """No option that reads a path can be left out of the check above."""
    named = ("model", "models", "data", "calibration", "sources", "audio", "reference")
    for command, info in zip(get_command(app).commands.values(), app.registered_commands, strict=True):
        hints = get_params_from_function(info.callback)
        for parameter in command.params:
            known = hints.get(parameter.name)
            if known and known.annotation is not bool and ("Path" in str(known.annotation) or parameter.name in named):
                assert parameter.metavar in PLACES, f"{command.name} {parameter.name}"
    assert len(places()) > 25


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_the_help_is_in_plain_words(command):
    """No types of Python: a flag has none to show, and of an argument it says how many there may be."""
    said = runner.invoke(app, [*command, "--help"], terminal_width=120).output
    assert not re.search(r"<[a-z\[]", said)
    if command == ("evaluate",):
        assert re.search(r"MODEL +one or more +Models to score", said)
