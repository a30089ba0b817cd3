"""Calibration pools: which utterances of one or several corpora a model is calibrated on (as in arXiv 2605.27808).

ρ of an utterance is the share of its words that are rare. Four kinds of pool:

- ``uniform``: a random sample;
- ``r-top``: those of one corpus with the highest ρ;
- ``r-mix``: half of them as in ``r-top``, the other half at random from the rest;
- ``r-cross``: as ``r-top``, over several corpora together. (The paper first takes the top ⌈4N/3⌉ of each; as that is
  more than the N it then takes of all, it does not change which they are.)

Ties in ρ are broken by the seed; the order in which a file system lists a corpus has no effect.

An earlier pool can be reused by its ids: a ``given`` pool.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tarq.config import PoolKind
from tarq.data.corpora.layout import read_text
from tarq.data.fields import strings
from tarq.data.intake import Intake
from tarq.data.sampling import first_usable, shuffled, usable
from tarq.data.utterance import Utterance, language_of
from tarq.errors import DataError
from tarq.report import FILE_NAME
from tarq.words.transcripts import Rarity


def word_counts(utterance: Utterance, rarity: Rarity) -> tuple[int, int]:
    """Words of an utterance's transcript in its own language, and how many of them are rare."""
    return rarity.counts(utterance.text, language_of(utterance, rarity.words.language))


def rho(utterance: Utterance, rarity: Rarity) -> float:
    """ρ: the share of an utterance's words that are rare; 0.0 where it has none."""
    words, rare = word_counts(utterance, rarity)
    return rare / words if words else 0.0


@dataclass(frozen=True)
class Pool:
    """The pool drawn; every list has one entry per utterance.

    Attributes:
        kind: of pool.
        utterances: in the order drawn.
        sources: the corpus each is from.
        words, rare_words: of each.
        candidates: how many utterances it was drawn from.
    """

    kind: PoolKind | Literal["given"]
    utterances: list[Utterance]
    sources: list[str]
    words: list[int]
    rare_words: list[int]
    candidates: int

    @cached_property
    def rho(self) -> list[float]:
        """ρ of each utterance; NaN if it has no words (a model is to transcribe it)."""
        return [rare / words if words else math.nan for words, rare in zip(self.words, self.rare_words, strict=True)]

    def summary(self, source: str | None = None) -> dict[str, Any]:
        """For a report: figures of the whole pool, or of its utterances from one source.

        ρ is None where no utterance has words.
        """
        rows = [i for i, name in enumerate(self.sources) if source in (None, name)]
        rho = [self.rho[i] for i in rows if self.words[i]]
        return {
            "kind": self.kind,
            "utterances": len(rows),
            "candidates": self.candidates,
            "sources": dict(Counter(self.sources[i] for i in rows)),
            "seconds": round(sum(self.utterances[i].seconds() for i in rows), 2),
            "words": sum(self.words[i] for i in rows),
            "rare_words": sum(self.rare_words[i] for i in rows),
            "rho": {"mean": sum(rho) / len(rho), "min": min(rho), "max": max(rho)} if rho else None,
        }


def draw_pool(
    corpora: Mapping[str, Sequence[Utterance]],
    kind: PoolKind,
    count: int,
    seed: int,
    rarity: Rarity,
    *,
    max_duration: float | None = None,
    require_text: bool = True,
    intake: Intake | None = None,
) -> Pool:
    """Draw a pool; see above for its kinds.

    Args:
        corpora: label to utterances. Ids that occur in several corpora are prefixed with the corpus's label.
        count: at least 1; fewer are returned if fewer qualify, which the caller reports.
        seed: of the random draws and of the order among ties.
        rarity: which words are rare.
        max_duration, require_text, intake: see ``tarq.data.sampling.first_usable``.

    Raises:
        DataError: ``r-top`` of several corpora, ``r-cross`` of one, or what ``first_usable`` raises.
    """
    if kind == "r-top" and len(corpora) > 1:
        raise DataError("r-top draws from one corpus: give one, or r-cross for several")
    if kind == "r-cross" and len(corpora) < 2:
        raise DataError("r-cross draws from several corpora: give more, or r-top for one")
    corpora = _with_unique_ids(corpora)
    drawn = shuffled([utterance for utterances in corpora.values() for utterance in utterances], seed)
    ranked = drawn
    if kind != "uniform":
        if not any(utterance.text for utterance in drawn):
            raise DataError(f"{kind} needs the words of transcripts, and there are none: draw a uniform pool")
        ranked = sorted(drawn, key=lambda utterance: -rho(utterance, rarity))  # stable: ties keep the drawn order
    chosen = first_usable(
        ranked,
        math.ceil(count / 2) if kind == "r-mix" else count,
        max_duration=max_duration,
        require_text=require_text,
        intake=intake,
    )
    if kind == "r-mix":
        top = {utterance.id for utterance in chosen}
        rest = (utterance for utterance in drawn if utterance.id not in top)
        chosen += islice(usable(rest, max_duration, require_text, intake), count - len(chosen))
    return _pool(kind, chosen, corpora, rarity, len(drawn))


def given_pool(
    corpora: Mapping[str, Sequence[Utterance]],
    file: Path,
    rarity: Rarity,
    *,
    max_duration: float | None = None,
    require_text: bool = True,
    intake: Intake | None = None,
) -> Pool:
    """The utterances that a file names, in its order (:func:`read_ids`).

    Args:
        corpora: those the pool was drawn from, so that repeated ids get the same prefix.
        file: of the ids.
        rarity, max_duration, require_text, intake: see :func:`draw_pool`.

    Raises:
        DataError: the file is not usable, some of its ids are in none of the corpora, or what ``first_usable`` raises.
    """
    ids, corpora = read_ids(file), _with_unique_ids(corpora)
    known = {utterance.id: utterance for utterances in corpora.values() for utterance in utterances}
    missing = [name for name in ids if name not in known]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of its {len(ids)} ids are in none of the corpora: "
            f"{', '.join(missing[:3] + ['…'] * (len(missing) > 3))}; give all that the pool was drawn from, under the "
            "same names"
        )
    named = [known[name] for name in ids]
    chosen = first_usable(named, len(ids), max_duration=max_duration, require_text=require_text, intake=intake)
    return _pool("given", chosen, corpora, rarity, len(ids))


def _pool(
    kind: PoolKind | Literal["given"],
    chosen: list[Utterance],
    corpora: Mapping[str, Sequence[Utterance]],
    rarity: Rarity,
    candidates: int,
) -> Pool:
    source = {utterance.id: label for label, utterances in corpora.items() for utterance in utterances}
    counts = [word_counts(utterance, rarity) for utterance in chosen]
    return Pool(
        kind=kind,
        utterances=chosen,
        sources=[source[utterance.id] for utterance in chosen],
        words=[words for words, _ in counts],
        rare_words=[rare for _, rare in counts],
        candidates=candidates,
    )


def read_ids(path: Path) -> list[str]:
    """The ids of a pool: from its JSON (``tarq pool --json``), a checkpoint or its report, or a text file, one per
    line.

    Raises:
        DataError: there is no such file, it is not UTF-8, is damaged, has no ids, or repeats one.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; give a pool's JSON, a checkpoint's report or a file of ids, one per line"
        )
    text = read_text(file)
    if text.lstrip().startswith("{"):
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}: invalid JSON ({error}); give what `tarq pool --json` wrote") from error
        holder = fields if "ids" in fields else fields.get("calibration")
        ids = list(strings(holder, "ids", str(file))) if isinstance(holder, dict) else []
    else:
        ids = [line.strip() for line in text.split("\n") if line.strip()]
    if not ids:
        raise DataError(
            f"{file}: no ids in it; give a pool's JSON, a calibrated checkpoint's report, or one id per line"
        )
    name, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file}: id {name!r} occurs {times} times; remove the duplicates")
    return ids


def _with_unique_ids(corpora: Mapping[str, Sequence[Utterance]]) -> Mapping[str, Sequence[Utterance]]:
    """The corpora; if an id is in more than one, every id is prefixed with its corpus's label."""
    ids = Counter(utterance.id for utterances in corpora.values() for utterance in utterances)
    if len(corpora) == 1 or max(ids.values()) == 1:
        return corpora
    return {label: [replace(u, id=f"{label}/{u.id}") for u in utterances] for label, utterances in corpora.items()}
