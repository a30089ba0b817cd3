"""Options of the command line: configuration fields become options; shared options are defined here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.errors import ConfigError, OutputError
from tarq.files import check_file, expanded
from tarq.option import CALIBRATION, RESOURCES, Checked, Option, options
from tarq.presets import PRESETS

if TYPE_CHECKING:
    from tarq.models.base import Recognizer
    from tarq.report import Reporter

FIELDS = options(TarqConfig)
#: Placeholder of a value in the help, by kind of field.
METAVARS = {"int": "N", "float": "X", "path": "FILE", "language": "CODE", "names": "LAYER", "entries": "FILE"}
OUTPUT = "Output"
#: The field that has no option of its own: its values come with ``--bits``.
_BITS_FOR = "bits_for"


def writable(context: typer.Context, option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a file that could not be written now, not after the work is done, or that two options name."""
    if path is not None:
        try:
            check_file(path)
        except OutputError as error:
            raise typer.BadParameter(str(error)) from error
        place = expanded(path)
        other = context.meta.setdefault(__name__, {}).setdefault(place.resolve(), option.opts[0])
        if other != option.opts[0] and (place.is_file() or not place.exists()):  # /dev/stdout takes both
            raise typer.BadParameter(f"{path} is what {other} writes to: name another file")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=writable,
        rich_help_panel=OUTPUT,
        help="Also write the results to this JSON file.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace an existing OUT.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RESOURCES,
        show_default=False,
        help="auto, cpu, cuda or cuda:1. Default: auto.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RESOURCES,
        show_default=False,
        help="Computation dtype: auto (float32 on a CPU, else as stored), float32, bfloat16, float16. Default: auto.",
    ),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8-activations",
        rich_help_panel=RESOURCES,
        help="Round the inputs of layers of 4 bits or fewer to 8 bits: faster on a CPU, less exact.",
    ),
]
PackedHead = Annotated[
    bool,
    typer.Option(
        "--packed-head",
        rich_help_panel=RESOURCES,
        help="Round the output head to 8 bits in memory: faster on a CPU, where few windows are decoded at once.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        rich_help_panel=CALIBRATION,
        help="Use only utterances whose field KEY is VALUE (repeatable).",
    ),
]
SPEECH = "a corpus's file or folder, PATH:PART or hub:NAME:PART"


def configured(*names: str, of: type[Checked] = TarqConfig, **helps: str) -> Callable[[Callable], Callable]:
    """Replace a command's parameter ``chosen`` by one option per configuration field.

    The command receives in ``chosen`` the fields that the user gave, in their own types. Fields not given are absent,
    so that the preset or the default applies.

    Args:
        names: fields of the configuration.
        of: its class.
        helps: field to help text, where a command means something more specific than the field's own help.
    """

    named = [name for name in names if name != _BITS_FOR]
    fields = options(of)

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            made = (
                [_parameter(name, of, helps.get(name)) for name in named] if parameter.name == "chosen" else [parameter]
            )
            parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in made]

        def command(**given: Any) -> Any:
            chosen = {name: given.pop(name) for name in named}
            if isinstance(chosen.get("bits"), dict):
                chosen |= chosen.pop("bits")
            chosen = {name: fields[name].check(value) for name, value in chosen.items() if value not in (None, [])}
            return function(**given, chosen=chosen)

        command.__name__, command.__doc__, command.__module__ = (
            function.__name__,
            function.__doc__,
            function.__module__,
        )
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, of: type[Checked], help: str | None) -> inspect.Parameter:
    field = options(of)[name]
    text = help or field.help
    text = text if "Default: " in text else f"{text} {_default(name, of)}".strip()
    settings: dict[str, Any] = {"help": text, "rich_help_panel": field.panel, "show_default": False}
    kind: Any = str | None
    declarations = [f"--{name.replace('_', '-')}"]
    if field.kind == "bool":
        kind, declarations = bool | None, ["--symmetric/--asymmetric"] if name == "symmetric" else declarations
    elif field.kind == "names":
        kind, settings["metavar"] = list[str] | None, METAVARS["names"]
    else:
        parse = parse_bits if name == "bits" else parser(field)
        settings |= {"metavar": METAVARS.get(field.kind, "NAME"), "parser": parse}
    annotation = Annotated[kind, typer.Option(*declarations, **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(name: str, of: type[Checked]) -> str:
    if of is TarqConfig and any(name in preset for method, preset in PRESETS.items() if method != "tarq-paper"):
        return "Default: the method's."
    default = of.__dataclass_fields__[name].default
    shown = f"{default:g}" if isinstance(default, float) else default
    return "" if isinstance(default, bool) or default in (None, ()) else f"Default: {shown}."


def parser(field: Option) -> Callable[[Any], Any]:
    """Parser from an option's text to the field's value; refuses a wrong one and says what is allowed."""

    def parse(text: Any) -> Any:
        value: Any = text
        if isinstance(text, str) and field.kind in ("int", "float", "residual"):
            try:
                value = int(text) if field.kind == "int" else float(text)
            except ValueError:
                value = text
        try:
            return field.check(value)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


def parse_bits(text: Any) -> Any:
    """From ``N`` to a number, and from ``PLACE=N,…``, with or without an ``N`` for the rest, to both fields."""
    if "=" not in text:
        return parser(FIELDS["bits"])(text)
    found: dict[str, int] = {}
    for part in text.split(","):
        place, _, width = part.rpartition("=")
        if place in found:
            raise typer.BadParameter(f"must state each place once, not {text!r}")
        try:
            found[place] = FIELDS["bits"].check(int(width) if width.isdecimal() else width)
        except ConfigError as error:
            raise typer.BadParameter(f"{error} ({part!r})") from error
    rest = {"bits": found.pop("")} if "" in found else {}
    return rest | {_BITS_FOR: found}


def number(kind: str, low: float, high: float) -> Callable[[Any], Any]:
    """Parser of a number within bounds (never NaN), for an option that is not a configuration field."""
    return parser(Option("", "", kind, low=low, high=high))


def where_to_run(device: str, dtype: str) -> dict[str, Any]:
    """Device and dtype as the API takes them; unavailable ones are refused before any work."""
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"must be auto, float32, bfloat16 or float16, not {dtype!r}", param_hint="--dtype")
    import torch

    from tarq.distributed import local_device

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = local_device(device)
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{device!r} cannot be used: {reason}", param_hint="--device") from error
    if kind == "meta":
        raise typer.BadParameter("'meta' computes nothing; choose cpu or cuda", param_hint="--device")
    return {"device": device, "dtype": None if dtype == "auto" else getattr(torch, dtype)}


def round_inputs(recognizers: Mapping[str, Recognizer], reporter: Reporter) -> None:
    """Apply ``--int8-activations`` and note packed layers that stay exact; refused where no layer can use it."""
    found = {label: recognizer.use_int8_activations() for label, recognizer in recognizers.items()}
    notes = {label: f"{label}: {rounding.note()}" for label, rounding in found.items() if rounding.note()}
    if not any(found.values()):
        raise typer.BadParameter(f"has no effect here: {'; '.join(notes.values())}", param_hint="--int8-activations")
    for label, note in notes.items():
        if recognizers[label].is_quantized:
            reporter.note(note)
