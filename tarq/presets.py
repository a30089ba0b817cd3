"""What each named method sets: data, from which configurations and the command line are made."""

from __future__ import annotations

from typing import Any

#: What every other method is published with: weights are rounded as they are, and all positions count.
PUBLISHED: dict[str, Any] = {"reparametrize": "none", "max_positions": None}
#: What GPTQ and its kin are published with besides: the zero point is the middle code.
SYMMETRIC: dict[str, Any] = {"symmetric": True, "scale_rule": "absmax", **PUBLISHED}

#: The fields that each named method sets; fields a preset omits keep their defaults. All methods share one code path.
PRESETS: dict[str, dict[str, Any]] = {
    # Best of all arms measured on OpenAI's weights (docs/defaults.md), and therefore the default of every field.
    "refined": {
        "metric": "plain",
        "residual": "cross-fitted-bias",
        "solver": "refined",
        "symmetric": False,
        "scale_rule": "mse",
        "reparametrize": "both",
        "max_positions": 200_000,
    },
    "tarq": {"metric": "rarebal", "residual": "cross-fitted", "solver": "sweep", **SYMMETRIC},
    "gptq": {"metric": "plain", "residual": "none", "solver": "sweep", **SYMMETRIC},
    "rtn": {"metric": "plain", "residual": "none", "solver": "rtn", **SYMMETRIC},
    # The field's own, each with its paper, what it equals and where it differs in its file of tarq/method/.
    "gptaq": {"metric": "plain", "residual": "none", "solver": "gptaq", **SYMMETRIC},
    "qep": {"metric": "plain", "residual": "qep", "solver": "sweep", **SYMMETRIC},
    "qronos": {"metric": "plain", "residual": "qronos", "solver": "sweep", **SYMMETRIC},
    "coreq": {"metric": "plain", "residual": "coreq", "solver": "sweep", "act_order": "static", **SYMMETRIC},
    "k-coreq": {"metric": "plain", "residual": "coreq", "solver": "beam", "act_order": "static", **SYMMETRIC},
    "rsq": {"metric": "rsq", "residual": "none", "solver": "sweep", **SYMMETRIC},
    "maca": {"metric": "maca", "residual": "none", "solver": "sweep", **SYMMETRIC},
    "sarqc": {"metric": "plain", "residual": 1.0, "solver": "sarqc", **SYMMETRIC},
    "guided": {"metric": "guided", "residual": "none", "solver": "sweep", **SYMMETRIC},
    "yaqa": {"metric": "plain", "residual": "none", "solver": "kronecker", **SYMMETRIC},
    # SpQR's lattice spans its groups. No checkpoint can hold its outliers: it is for measuring.
    "spqr": {
        "metric": "plain",
        "residual": "none",
        "solver": "spqr",
        "symmetric": False,
        "scale_rule": "minmax",
        **PUBLISHED,
    },
    "awq": {"metric": "plain", "residual": "none", "solver": "clipped", "input_scales": "awq", **SYMMETRIC},
    "clipped": {"metric": "plain", "residual": "none", "solver": "clipped", **SYMMETRIC},
    # The paper's grafts: what else can be done to a weight, with TARQ.
    "tarq-smoothquant": {
        "metric": "rarebal",
        "residual": "cross-fitted",
        "solver": "sweep",
        "input_scales": "smoothquant",
        **SYMMETRIC,
    },
    "tarq-spqr": {"metric": "rarebal-gated", "residual": "cross-fitted", "solver": "spqr", **SYMMETRIC},
    # The paper's family with four buckets: common words, and bands of the tail from Zipf 3, 2 and 1 down.
    "tarq-bands": {
        "metric": "rarebal-bands",
        "tail_bands": 3,
        "residual": "cross-fitted",
        "solver": "sweep",
        **SYMMETRIC,
    },
    # The paper's controls: TARQ on other positions than rare ones.
    "random": {"metric": "random", "residual": "cross-fitted", "solver": "sweep", **SYMMETRIC},
    "common": {"metric": "common", "residual": "cross-fitted", "solver": "sweep", **SYMMETRIC},
    "gradient": {"metric": "gradient", "residual": "cross-fitted", "solver": "sweep", **SYMMETRIC},
    # arXiv 2605.27808, pinned: independent of later changes to the defaults.
    "tarq-paper": {
        # What the paper says: RareBAL at c = 1 without a cap, rare below Zipf 3, the residual's direction from the
        # unweighted cross-moment with its own α, scales by its eq. 1, GPTQ's sweep with damping 0.01 in natural order.
        "metric": "rarebal",
        "cost_ratio": 1.0,
        "max_lambda": None,
        "tail_threshold": 3.0,
        "residual": "paper",
        "symmetric": True,
        "scale_rule": "minmax",
        **PUBLISHED,
        "solver": "sweep",
        "damp": 0.01,
        "act_order": "none",
        # Our reading: it tags tokens and weights x_t by the token at t, which is the input token; it does not mention
        # padding, so padding frames count like any other; its tags come from transcripts alone, so frames have none.
        "tail_positions": "input",
        "padding_weight": 1.0,
        "frame_tags": "none",
    },
}
