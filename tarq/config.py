"""Every choice of a quantization run, in one dataclass; the CLI, the report and a rerun derive from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch

from tarq.kernels.scheme import ScaleRule, Scheme
from tarq.words.frequencies import Frequencies, frequencies
from tarq.words.normalize import Normalizer, get_normalizer

Method = Literal["tarq", "gptq", "rtn"]
MetricName = Literal["rarebal", "plain", "random", "common"]
SolverName = Literal["sweep", "rtn"]
TailPositions = Literal["input", "target", "either"]
Timestamps = Literal["without", "with", "alternate"]
FrameTags = Literal["auto", "none", "aligned"]
Transcripts = Literal["reference", "self"]
Normalization = Literal["auto", "english", "basic", "none"]
ActOrder = Literal["none", "static"]
PoolKind = Literal["uniform", "r-top", "r-mix", "r-cross"]
ScaleDtype = Literal["auto", "float16", "bfloat16", "float32"]
RESIDUALS = ("cross-fitted", "least-squares", "paper", "none")

#: What the named methods switch on and off; everything else is the same path.
PRESETS: dict[str, dict[str, Any]] = {
    "tarq": {"metric": "rarebal", "residual": "cross-fitted", "solver": "sweep"},
    "gptq": {"metric": "plain", "residual": "none", "solver": "sweep"},
    "rtn": {"metric": "plain", "residual": "none", "solver": "rtn"},
}


@dataclass(frozen=True)
class TarqConfig:
    """Configuration of one quantization run. ``TarqConfig()`` is TARQ at W4G128.

    Attributes:
        bits: 2, 3, 4 or 8 bits a weight.
        group_size: input features that share a scale; a layer it does not divide gets the largest of
            64, 32, 16, 8 that does, and the report says so.
        symmetric: zero point fixed at the middle code; False for an integer zero point per group.
        scale_rule: ``absmax``, ``minmax`` (paper eq. 1) or ``mse``; see :class:`tarq.kernels.scheme.Scheme`.
        metric: which positions count how much. ``rarebal`` (paper §3), ``plain`` (GPTQ), or the controls
            ``random`` (a random set of the tail's size) and ``common`` (such a set of common positions).
        cost_ratio: c of ``λ = c · tr(H_C) / tr(H_T)``; the paper has 1, a quarter measured better.
        max_lambda: cap on λ, none by default.
        residual: correction for the drift of the layers already quantized: ``cross-fitted`` (weighted
            cross-moment, α judged on utterances it was not fitted on), ``least-squares`` (the same direction,
            α that minimises the error on the calibration set itself), ``paper`` (its α), ``none``, or a float
            used as a fixed α.
        solver: ``sweep`` (Cholesky-based, GPTQ's codes) or ``rtn`` (round to nearest).
        damp: δ = damp · mean(diag H) is added to the metric's diagonal.
        act_order: ``none``, or ``static``: scales first, then columns by falling diag(H).
        tail_positions: a position is tagged by its ``input`` token, its ``target`` token, or ``either``.
        frame_tags: rows of audio are tagged by where the model itself hears a rare word (``aligned``: the best CTC
            path, or the decoder's attention to them), or not at all (``none``); ``auto`` is ``aligned`` for
            CTC models, which have no other positions, and ``none`` for the rest.
        tail_threshold: a word is rare below this Zipf frequency (3 is one per million words).
        language: of the word frequencies and of the prompt of a multilingual model; an utterance whose manifest
            line has a ``language`` keeps its own.
        word_frequencies: a file of words and counts that takes the place of ``wordfreq``'s lists, in every language.
        timestamps: teach transcripts ``without`` times, ``with`` the times of their begin and end, or ``alternate``
            from utterance to utterance (Whisper).
        normalizer: text normaliser that cuts transcripts into words: ``english``, ``basic`` or ``none``;
            ``auto`` is ``english`` for English and ``basic`` for other languages.
        transcripts: teacher-force on ``reference`` transcripts (the model's own where one is missing), or
            on the model's ``self``-made full-precision hypotheses throughout.
        padding_weight: weight of encoder frames beyond the end of the audio.
        scale_dtype: dtype scales are stored in; ``auto`` is the dtype the checkpoint was stored in.
        ignore: names of Linear layers to leave alone; a name matches the layer or everything below it.
        pool: which utterances are drawn: ``uniform``, or by their share of rare words ``r-top``, ``r-mix`` or
            ``r-cross`` (:mod:`tarq.data.pools`).
        ids: a file that names the calibration utterances, of which then none are drawn: a pool's JSON (``tarq pool
            --json``), a checkpoint or its report, or a text file with an id a line.
        samples: calibration utterances drawn.
        max_bad: broken audio files that may be left out, of the calibration speech or of each scored set.
        batch_size: utterances a forward pass takes at once.
        activation_memory: GB (1e9 bytes) for what one block's Linears read in full precision and what its parts came
            to; what does not fit is computed again for each group of Linears. The result is the same.
        seed: of the sampling of utterances and of the random controls.

    Raises:
        ValueError: a field is outside its choices; the message names it.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    scale_rule: ScaleRule = "absmax"
    metric: MetricName = "rarebal"
    cost_ratio: float = 0.25
    max_lambda: float | None = None
    residual: str | float = "cross-fitted"
    solver: SolverName = "sweep"
    damp: float = 0.01
    act_order: ActOrder = "none"
    tail_positions: TailPositions = "target"
    frame_tags: FrameTags = "auto"
    tail_threshold: float = 3.0
    language: str = "en"
    word_frequencies: str | None = None
    timestamps: Timestamps = "without"
    normalizer: str = "auto"
    transcripts: Transcripts = "reference"
    padding_weight: float = 0.1
    scale_dtype: ScaleDtype = "auto"
    ignore: tuple[str, ...] = field(default=())
    pool: PoolKind = "uniform"
    ids: str | None = None
    samples: int = 128
    max_bad: int = 0
    batch_size: int = 4
    activation_memory: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.scheme()  # checks bits, group_size and scale_rule
        choices = {
            "metric": MetricName,
            "solver": SolverName,
            "act_order": ActOrder,
            "tail_positions": TailPositions,
            "frame_tags": FrameTags,
            "timestamps": Timestamps,
            "transcripts": Transcripts,
            "normalizer": Normalization,
            "pool": PoolKind,
            "scale_dtype": ScaleDtype,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {getattr(self, name)!r}")
        if isinstance(self.residual, str) and self.residual not in RESIDUALS:
            raise ValueError(f"residual must be {', '.join(RESIDUALS)} or a number, not {self.residual!r}")
        if not isinstance(self.residual, str) and not math.isfinite(self.residual):
            raise ValueError(f"residual must be a finite number, not {self.residual}")
        for name in ("cost_ratio", "damp", "padding_weight", "activation_memory"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a non-negative number, not {getattr(self, name)}")
        if self.max_lambda is not None and self.max_lambda <= 0:
            raise ValueError(f"max_lambda must be positive, not {self.max_lambda}")
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.ids is not None and self.pool != "uniform":
            raise ValueError(f"ids say which utterances, and so does pool {self.pool}: leave one out")
        if self.max_bad < 0:
            raise ValueError(f"max_bad must be a non-negative number, not {self.max_bad}")
        object.__setattr__(self, "ignore", tuple(self.ignore))

    @classmethod
    def preset(cls, method: str, **overrides: Any) -> TarqConfig:
        """The configuration of a named method (``tarq``, ``gptq``, ``rtn``) with fields overridden.

        Raises:
            ValueError: the method or a field is unknown.
        """
        if method not in PRESETS:
            raise ValueError(f"method must be one of {', '.join(PRESETS)}, not {method!r}")
        return cls.from_dict(PRESETS[method] | overrides)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TarqConfig:
        """The inverse of :meth:`to_dict`, so that a run can be redone from its report."""
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"unknown configuration fields: {', '.join(sorted(unknown))}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"ignore": list(self.ignore)}

    @property
    def method(self) -> str:
        """The preset these switches equal, or ``custom``."""
        for name, fields in PRESETS.items():
            if all(getattr(self, key) == value for key, value in fields.items()):
                return name
        return "custom"

    @property
    def corrects_drift(self) -> bool:
        """Whether a residual compares the partly quantized network with full precision."""
        return self.residual not in ("none", 0)

    @property
    def needs_statistics(self) -> bool:
        """Whether any calibration audio is read: rounding to nearest looks at the weights alone."""
        return self.solver != "rtn" or self.corrects_drift

    def text_normalizer(self, spelling: Mapping[str, str] | None = None) -> Normalizer:
        """The normaliser this configuration names, resolved by language.

        Args:
            spelling: British to American spellings, which Whisper's tokenizers carry; English only.
        """
        name = self.normalizer
        if name == "auto":
            name = "english" if self.language == "en" else "basic"
        return get_normalizer(name, spelling if name == "english" else None, self.language)

    def frequencies(self) -> Frequencies:
        """Where the Zipf scores come from, checked.

        Raises:
            DataError: the file of word frequencies is not usable, or wordfreq has no list for the language.
        """
        return frequencies(self.language, self.word_frequencies)

    def scheme(self, group_size: int | None = None) -> Scheme:
        """The lattice, with the group size a layer really gets."""
        return Scheme(self.bits, group_size or self.group_size, self.symmetric, self.scale_rule)

    def with_scale_dtype(self, stored: torch.dtype) -> TarqConfig:
        """``auto`` replaced by the dtype the checkpoint was stored in."""
        if self.scale_dtype != "auto":
            return self
        name = str(stored).removeprefix("torch.")
        return self.from_dict(self.to_dict() | {"scale_dtype": name if name in get_args(ScaleDtype) else "float32"})
