"""``tarq quantize MODEL OUT`` without speech: the testbed's is calibrated on, for a first try."""

from __future__ import annotations

from dataclasses import replace

from tarq.config import TarqConfig
from tarq.data.intake import Intake
from tarq.data.speech import Speech
from tarq.errors import DataError, ModelError
from tarq.words.frequencies import known_language

#: What a report says of a checkpoint made so.
NOTE = (
    "calibrated on synthetic English speech that comes with tarq, for lack of --calibration: a first try, whose "
    "damage to real speech was not measured. For use give speech of your own domain, with or without transcripts"
)


def packaged_speech(config: TarqConfig) -> tuple[dict[str, Speech], TarqConfig]:
    """The testbed's calibration speech, and the configuration to use it with: the model's own transcripts.

    Raises:
        ModelError: it would not do: another language is asked for, utterances are named, or it is not installed.
    """
    needs = f"{config.method} needs calibration speech: pass a manifest or another corpus (--calibration)"
    if config.ids is not None:
        raise ModelError(f"{needs}, the one that the ids of {config.ids} are of")
    if config.word_frequencies is None and known_language(config.language) != "en":
        raise ModelError(f"{needs}; what comes with tarq is English, and the language is {config.language}")
    from tarq import testbed

    try:
        utterances = testbed.calibration_pool()
    except DataError as error:
        raise ModelError(f"{needs}. For a first try tarq has some of its own, but {error}") from error
    speech = Speech(utterances, "tarq.testbed", Intake(config.max_bad))
    return {"testbed": speech}, replace(config, transcripts="self")
