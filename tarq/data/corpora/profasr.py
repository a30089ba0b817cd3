"""ProfASR-Bench: synthetic professional talk in four domains, a data set of the hub.

Columns utterance_id, audio (22.05 kHz), text, profile, domain, voice, asr_difficulty, sentences, prompt and
truth; one split, train. It is stored as ``datasets`` saves to disk (``data/train/*.arrow``), so a clone of the
repository is read like the hub itself (``tarq.data.hub``). ``truth`` is the reference transcript, taken as
written. The release marks no entities; where a copy has a column ``named_entities``, it is used.
"""

from __future__ import annotations

from tarq.data.hub import HubColumns

#: ``prdeepakbabu/ProfASR-Bench``.
HUB = HubColumns(
    "profasr",
    needs=("utterance_id", "truth"),
    id="utterance_id",
    text="truth",
    speaker="voice",
    entities="named_entities",
)
