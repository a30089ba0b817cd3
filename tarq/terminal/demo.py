"""``tarq demo``: one model, three methods, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.files import write_json
from tarq.option import CALIBRATION, METHOD
from tarq.presets import PRESETS
from tarq.terminal.console import command, console, progress_console, say
from tarq.terminal.options import (
    FIELDS,
    SPEECH,
    Device,
    Dtype,
    JsonFile,
    Where,
    configured,
    number,
    parser,
    where_to_run,
)
from tarq.terminal.progress import TerminalReporter

if TYPE_CHECKING:
    import torch

    from tarq.data.utterance import Utterance
    from tarq.report import Reporter
    from tarq.scoring.run import Evaluation


@dataclass(frozen=True)
class Size:
    """How many utterances a demo uses."""

    samples: int  # calibrated on
    scored: int
    batch_size: int


WHOLE, QUICK = Size(samples=64, scored=200, batch_size=64), Size(samples=16, scored=40, batch_size=64)
#: For the user's own model, of any size.
OWN = Size(samples=24, scored=24, batch_size=4)
BITS = (4, 3)
#: Names in the table to presets; README says *default* of what ``tarq quantize`` does unasked.
METHODS = {"RTN": "rtn", "GPTQ": "gptq", "default": "refined"}
#: Largest calibration batch: the activations of a few utterances stay in the CPU caches.
CALIBRATION_BATCH = 8


def scoring_dtype(device: str | torch.device) -> torch.dtype | None:
    """bfloat16 on a CPU that multiplies it natively (in half the time); otherwise what :func:`tarq.load` chooses."""
    import torch

    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if torch.device(device).type == "cpu" and native() else None


def demonstrate(
    model: str,
    calibration: Sequence[Utterance],
    data: Mapping[str, Sequence[Utterance]],
    config: TarqConfig,
    reporter: Reporter,
    *,
    bits: Sequence[int] = BITS,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Evaluation, dict[str, int]]:
    """Quantize a model with RTN, GPTQ and the default method, save, load again, score all models.

    Args:
        model: full-precision model, folder or hub id.
        calibration: utterances to calibrate on.
        data: label to other utterances, with transcripts, to score on.
        config: samples, batch size (:data:`CALIBRATION_BATCH` at most in calibration), seed and group size are read
            from it.
        reporter: receives progress.
        bits: bit widths, each with all three methods.
        device: where the models run.
        dtype: computation dtype of the scored models, :func:`scoring_dtype`'s choice when not given; calibration
            computes as :func:`tarq.load` chooses.

    Returns:
        The scores, and the bytes of each model's Linear weights.

    Raises:
        TarqError: the model or the data are not usable.
    """
    from tarq import api

    dtype = dtype or scoring_dtype(device)
    where: dict[str, Any] = {"device": device, "language": config.language}
    models = {"full precision": api.load_recognizer(model, dtype=dtype, **where)}
    calibrating = replace(config, batch_size=min(config.batch_size, CALIBRATION_BATCH))
    with TemporaryDirectory(prefix="tarq-demo-") as folder:
        for width in bits:
            for label, method in METHODS.items():
                recognizer = api.load_recognizer(model, **where)
                chosen = replace(calibrating, bits=width, **PRESETS[method])
                report = api.quantize(recognizer, calibration, chosen, reporter=reporter)
                name = f"{label} W{width}"
                out = Path(folder) / name
                api.save(recognizer, out, report)
                models[name] = api.load_recognizer(out, dtype=dtype, **where)
        scores = api.evaluate(models, data, reference="full precision", config=config, reporter=reporter)
    sizes = {name: recognizer.linear_bytes() for name, recognizer in models.items()}
    return scores, sizes


def register(app: typer.Typer) -> None:
    app.command()(demo)


@configured(
    "samples",
    "language",
    "batch_size",
    "seed",
    samples="Calibration utterances. Default: 64, or 24 for a MODEL.",
    batch_size="Utterances per forward pass. Default: 64, or 4 for a MODEL.",
    seed="Random seed of the samples.",
)
def demo(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Full-precision model: a folder or a hub id; the packaged one if not given.",
        ),
    ] = None,
    *,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="SPEECH",
            rich_help_panel=CALIBRATION,
            help=f"Transcribed speech to calibrate on: {SPEECH}; the packaged pool if not given.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEECH", help="Other transcribed speech to score on; the packaged test set if not given."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer utterances: under a minute.")] = False,
    score: Annotated[
        int | None,
        typer.Option(
            metavar="N", parser=number("int", 1, 10**9), help="Utterances scored. Default: 200, or 24 for a MODEL."
        ),
    ] = None,
    where: Where = None,
    chosen: dict,
    bits: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            parser=parser(FIELDS["bits"]),
            rich_help_panel=METHOD,
            help="2, 3, 4 or 8 (repeatable). Default: 4 and 3.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Quantize with RTN, GPTQ and the default method, save, reload, transcribe, and print the score table.

    Without arguments: a small recognizer and synthetic speech that come with the package.
    """
    size = QUICK if quick else WHOLE if model is None else OWN
    config = TarqConfig(**{"samples": size.samples, "batch_size": size.batch_size} | chosen)
    with TerminalReporter(progress_console) as reporter:
        reporter.phase("starting")
        from tarq import testbed
        from tarq.data.corpora.registry import load_utterances
        from tarq.data.sampling import sample_utterances, select_utterances
        from tarq.terminal.scores import show_demo

        place = where_to_run(device, dtype)
        config.frequencies()
        reporter.phase("loading speech")
        test_set = testbed.test_set() if data is None else load_utterances(data)
        scored = sample_utterances(
            select_utterances(test_set, where or []),
            score or size.scored,
            config.seed,
            max_duration=30,
            require_text=True,
        )
        # Both may come from one corpus; scored utterances are never calibrated on.
        taken = {u.origin for u in scored}
        pool = testbed.calibration_pool() if calibration is None else load_utterances(calibration)
        pool = [u for u in pool if u.origin not in taken]
        scores, sizes = demonstrate(
            str(testbed.model()) if model is None else model,
            pool,
            {"demo": scored},
            config,
            reporter,
            bits=tuple(bits or BITS),
            **place,
        )
        if json_file:
            write_json(json_file, scores.to_dict() | {"linear_bytes": sizes})
    (only,) = scores.sets.values()
    show_demo(console, only, sizes, {u.id: u.text or "" for u in scored})
    own = ["MODEL" if model is None else model, "OUT"]
    say("")
    say(f"default: tarq quantize without --method, which is --method {METHODS['default']}")
    say(f"next, on your own model: {command('tarq', 'quantize', *own, '--calibration', calibration or 'SPEECH')}")
    say(f"and then: {command('tarq', 'evaluate', *own, '--data', data or 'SPEECH')}")
