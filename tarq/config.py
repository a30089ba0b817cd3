"""Every setting of a quantization run; the command line, the report and a rerun derive from it.

A setting is a field with its help, its panel and the values it takes (:mod:`tarq.option`). Fields are grouped by
concern: :class:`tarq.lattice.Lattice`, :class:`Method`, :class:`tarq.words.settings.Words`, :class:`Pool`,
:class:`Resources`. :class:`TarqConfig` holds all of them, flat; code that needs one concern takes that class, which is
:meth:`TarqConfig.part` of the whole.
"""

# ruff: noqa: RUF009 - option() is dataclasses.field() with what the field says of itself

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from tarq.method.arms import Arms

from tarq.errors import ConfigError
from tarq.lattice import Lattice
from tarq.method.registry import INPUT_SCALES, METRICS, RESIDUALS, SOLVERS
from tarq.option import CALIBRATION, METHOD, POSITIVE, RESOURCES, Checked, option, options
from tarq.presets import PRESETS
from tarq.words.settings import Words

TailPositions = Literal["input", "target", "either"]
Timestamps = Literal["without", "with", "alternate"]
FrameTags = Literal["auto", "none", "aligned"]
Transcripts = Literal["reference", "self"]
ActOrder = Literal["none", "static"]
Reparametrize = Literal["none", "heads", "hidden", "both"]
PoolKind = Literal["uniform", "r-top", "r-mix", "r-cross"]

Part = TypeVar("Part", bound=Checked)


@dataclass(frozen=True)
class Method(Checked):
    """How codes are chosen.

    Attributes:
        metric: how positions are weighted. ``rarebal`` (paper §3; ``rarebal-bands``: K buckets, ``rarebal-gated``:
            without positions that outliers serve), ``plain`` (GPTQ), the controls ``random`` (a random set of the
            tail's size) and ``common`` (such a set of common positions); weights by utterance (``maca``), attention
            (``rsq``) or gradient (``guided``; ``gradient``, of a rare-balanced loss; ``gradient-plain``, its control).
        cost_ratio: c of ``λ = c · tr(H_C) / tr(H_T)``; the paper uses 1; a quarter measured better.
        max_lambda: cap on λ, none by default.
        residual: correction for the error of the layers already quantized: ``cross-fitted`` (weighted
            cross-moment, α estimated on utterances it was not fitted on), ``least-squares`` (the same direction,
            α that minimises the error on the calibration set itself), ``cross-fitted-bias`` (about the mean of the
            inputs, which the layers' biases absorb), ``qep``, ``qronos`` and ``coreq`` (those methods' own), ``paper``
            (its α), ``none``, or a float used as a fixed α.
        solver: ``sweep`` (Cholesky-based, GPTQ's codes), ``beam`` (the best of several paths of it), ``refined`` and
            ``refined-beam`` (then scales refitted and codes descended under the metric), ``gptaq`` (the sweep, which
            compensates drift as it goes), ``kronecker`` (under the gradients of the output as well), ``sarqc`` (a
            metric regularised towards the original weights), ``spqr`` (1 % of the weights keep 16 bits: not to be
            saved), ``clipped`` (to nearest, groups clipped by the error of the output) or ``rtn`` (to nearest).
        input_scales: ``awq`` or ``smoothquant`` first scales inputs, where something in front can take the scales.
        reparametrize: first other weights of the same function: ``heads`` of attentions rotated, ``hidden`` units of
            feed-forward networks sorted, or ``both`` (:mod:`tarq.method.reparametrize`).
        damp: δ = damp · mean(diag H) is added to the metric's diagonal.
        act_order: ``none``, or ``static``: scales are fixed first, then columns are swept by falling diag(H).
        tail_positions: a position is tagged by its ``input`` token, its ``target`` token, or ``either``.
        frame_tags: audio frames are tagged where the model itself places a rare word (``aligned``: by the best CTC
            path or the decoder's attention), or not at all (``none``); ``auto`` is ``aligned`` for
            CTC models, which have no other positions, and ``none`` for the rest.
        padding_weight: weight of encoder frames beyond the end of the audio.
        target_bits: mean bits per weight to stay within: layers that no place of ``bits_for`` matches have ``bits`` or
            more, by what each width does to the loss on the calibration speech (:mod:`tarq.walk.sensitivity`).
    """

    metric: str = option(
        "plain",
        METHOD,
        "Which positions count how much: rarebal, rarebal-bands, rarebal-gated, plain (GPTQ), the controls random and "
        "common, or by utterance (maca), attention (rsq) or the loss's gradient (guided, gradient, gradient-plain).",
        "choice",
        choices=tuple(METRICS),
    )
    cost_ratio: float = option(0.25, METHOD, "RareBAL's c; the paper uses 1.", "float", low=0, high=10**6)
    max_lambda: float | None = option(
        None, METHOD, "Cap on RareBAL's λ.", "float", low=POSITIVE, high=10**12, optional=True
    )
    residual: str | float = option(
        "cross-fitted-bias",
        METHOD,
        "Correction for the layers quantized before: cross-fitted, cross-fitted-bias, least-squares, qep, qronos, "
        "coreq, paper, none, or a number (a fixed α).",
        "residual",
        choices=tuple(RESIDUALS),
        low=0,
        high=10,
    )
    solver: str = option(
        "refined",
        METHOD,
        "How codes are chosen: sweep (GPTQ's), beam (the best of several), refined or refined-beam (then refined under "
        "the metric), gptaq, kronecker (under the output's gradients too), sarqc, spqr (1 % in 16 bits, never saved), "
        "clipped or rtn (nearest).",
        "choice",
        choices=tuple(SOLVERS),
    )
    input_scales: str = option(
        "none",
        METHOD,
        "First scale inputs, so that salient ones are rounded finer: none, awq or smoothquant.",
        "choice",
        choices=("none", *INPUT_SCALES),
    )
    reparametrize: Reparametrize = option(
        "both",
        METHOD,
        "First other weights of the same function that round better: heads rotated, hidden units sorted, both or none.",
        Reparametrize,
    )
    damp: float = option(0.01, METHOD, "Damping, as a share of the metric's mean diagonal.", "float", low=0, high=100)
    act_order: ActOrder = option(
        "none", METHOD, "Column order of the sweep: none (as stored) or static (by falling diag(H)).", ActOrder
    )
    tail_positions: TailPositions = option(
        "target", METHOD, "Which token makes a position rare: its input, its target, or either.", TailPositions
    )
    frame_tags: FrameTags = option(
        "auto",
        METHOD,
        "How audio frames are tagged as rare: aligned, none, or auto (aligned for CTC, none elsewhere).",
        FrameTags,
    )
    padding_weight: float = option(
        0.1, METHOD, "Weight of encoder frames beyond the end of the audio.", "float", low=0, high=10**6
    )
    target_bits: float | None = option(
        None,
        METHOD,
        "Mean bits per weight: widen the layers where it helps the loss most, from --bits on.",
        "float",
        low=2,
        high=8,
        optional=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver == "gptaq" and self.residual not in ("none", 0):
            raise ConfigError("the solver gptaq compensates drift itself: set residual to none")

    def arms(self) -> Arms:
        """The metric, the residual and the solver that these fields name."""
        from tarq.method.arms import Arms

        return Arms.of({name: getattr(self, name) for name in options(type(self))})

    @property
    def needs_statistics(self) -> bool:
        """Whether any calibration audio is read: rounding to nearest needs the weights alone."""
        return self.arms().reads_audio or self.target_bits is not None


@dataclass(frozen=True)
class Pool(Checked):
    """Which utterances are calibrated on, and with which transcripts.

    Attributes:
        pool: which utterances are drawn: ``uniform``, or by their share of rare words ``r-top``, ``r-mix`` or
            ``r-cross`` (:mod:`tarq.data.pools`).
        ids: a file that names the calibration utterances, instead of drawing them: a pool's JSON (``tarq pool
            --json``), a checkpoint or its report, or a text file with one id per line.
        samples: calibration utterances drawn.
        max_positions: positions that a layer's statistics are taken over at most; None for all. Where there are more,
            random batches count, and the others only pass through, for later stages (:mod:`tarq.walk.counted`).
        transcripts: teacher-force on ``reference`` transcripts (the model's own where one is missing), or
            on the full-precision model's own hypotheses throughout (``self``).
        timestamps: teacher-force transcripts ``without`` timestamps, ``with`` those of their start and end, or
            ``alternate`` from utterance to utterance (Whisper).
        max_bad: broken audio files that may be left out, of the calibration speech or of each scored set.
        seed: random seed of the sampling of utterances and of the random controls.
    """

    pool: PoolKind = option(
        "uniform",
        CALIBRATION,
        "How utterances are drawn: uniform (at random), or by share of rare words: r-top, r-mix or r-cross.",
        PoolKind,
    )
    ids: str | None = option(
        None,
        CALIBRATION,
        "Use these utterances instead of drawing: the --json of a pool, a checkpoint, or a file of ids.",
        "path",
        optional=True,
    )
    samples: int = option(128, CALIBRATION, "Number of utterances to draw.", "int", low=1, high=10**9)
    max_positions: int | None = option(
        200_000,
        CALIBRATION,
        "Positions that a layer's statistics are taken over at most: more speech then serves decoders, which have few.",
        "int",
        low=1,
        high=10**12,
        optional=True,
    )
    transcripts: Transcripts = option(
        "reference", CALIBRATION, "Transcripts to calibrate on: reference, or the model's own (self).", Transcripts
    )
    timestamps: Timestamps = option(
        "without",
        CALIBRATION,
        "Timestamps in the transcripts to calibrate on: without, with, or alternate (Whisper).",
        Timestamps,
    )
    max_bad: int = option(
        0,
        CALIBRATION,
        "Leave out up to this many broken audio files of each set before giving up.",
        "int",
        low=0,
        high=10**9,
    )
    seed: int = option(0, CALIBRATION, "Random seed.", "int", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ids is not None and self.pool != "uniform":
            raise ConfigError(f"both ids and pool {self.pool} choose the utterances: leave one out")


@dataclass(frozen=True)
class Resources(Checked):
    """What a run may use; none of it changes the result, except for the order of summation.

    Attributes:
        batch_size: utterances per forward pass.
        activation_memory: GB (1e9 bytes) for the full-precision inputs of one block's Linears and the outputs of its
            parts; what does not fit is recomputed for each group of Linears. The result is the same.
    """

    batch_size: int = option(4, RESOURCES, "Utterances per forward pass.", "int", low=1, high=10**6)
    activation_memory: float = option(
        4.0,
        RESOURCES,
        "GB for activations within a block; what does not fit is recomputed.",
        "float",
        low=0,
        high=10**6,
    )


@dataclass(frozen=True)
class TarqConfig(Resources, Pool, Words, Method, Lattice):
    """Configuration of one quantization run. ``TarqConfig()`` is the method ``refined`` at W4G128.

    Its fields are those of :class:`tarq.lattice.Lattice`, :class:`Method`, :class:`tarq.words.settings.Words`,
    :class:`Pool` and :class:`Resources`, where each is explained.

    Raises:
        ConfigError: a field has a value that is not allowed; the message names it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_bits is not None and self.target_bits < self.bits:
            raise ConfigError(f"target_bits must be at least bits, {self.bits}, not {self.target_bits:g}")

    @classmethod
    def preset(cls, method: str, **overrides: Any) -> TarqConfig:
        """The configuration of a named method (a key of :data:`PRESETS`) with fields overridden.

        Raises:
            ConfigError: the method or a field is unknown.
        """
        if not isinstance(method, str) or method not in PRESETS:
            raise ConfigError(f"method must be one of {', '.join(PRESETS)}, not {method!r}")
        return cls.from_dict(PRESETS[method] | overrides)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TarqConfig:
        """The inverse of :meth:`to_dict`, so that a run can be redone from its report.

        Raises:
            ConfigError: a field is unknown, or its value is not allowed.
        """
        if not isinstance(fields, Mapping):
            raise ConfigError(f"fields are {fields!r:.80}: give a mapping from field to value")
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown:
            raise ConfigError(f"unknown configuration fields: {', '.join(sorted(map(str, unknown)))}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain: dict[type, Any] = {tuple: list, dict: dict}
        values = {name: getattr(self, name) for name in options(self)}
        return {name: plain.get(type(value), lambda same: same)(value) for name, value in values.items()}

    def part(self, kind: type[Part]) -> Part:
        """The settings of one concern alone: ``config.part(Words)``."""
        return kind(**{name: getattr(self, name) for name in options(kind)})

    @property
    def method(self) -> str:
        """The preset that these fields match, or ``custom``; of several, the one that sets the most fields."""
        found = [name for name, fields in PRESETS.items() if all(getattr(self, k) == v for k, v in fields.items())]
        return max(found, key=lambda name: len(PRESETS[name]), default="custom")


def given_config(config: TarqConfig | None) -> TarqConfig:
    """The configuration a caller gave; the default one where none is given.

    Raises:
        ConfigError: it is something else.
    """
    if config is None:
        return TarqConfig()
    if not isinstance(config, TarqConfig):
        raise ConfigError(f"config is {config!r:.80}: give a TarqConfig, such as TarqConfig.preset('gptq', bits=4)")
    return config
