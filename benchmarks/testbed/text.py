"""Sentences with a long tail: frames and word lists of this folder, rare words of wordfreq's, one seed.

Which sentence comes n-th in a split depends on the seed, the split's name and the files under ``text/`` only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import wordfreq

from tarq.words.rarity import is_rare, zipf

TEXT = Path(__file__).parent / "text"
SEED = 2605
LONGEST = 16  # words
UNSEEN_TYPES = 0.3  # share of the rare words of each list that no training sentence holds
UNSEEN_DRAWS = 0.4  # share of the rare draws of a test sentence that are such words
DENSE = 0.6  # share of the training sentences that hold two rare words or more, to learn spelling from


@cache
def _words(file: str) -> dict[str, list[str]]:
    """The word lists of a file of this folder, by name."""
    tables = tomllib.loads((TEXT / file).read_text())
    return {name: words.split() for name, words in tables.items() if isinstance(words, str)}


def spoken(number: int) -> str:
    """A number under ten thousand in words: 1,204 -> "one thousand two hundred and four"."""
    units, tens = _words("numbers.toml")["units"], _words("numbers.toml")["tens"]
    if number < 20:
        return units[number]
    if number < 100:
        return tens[number // 10 - 2] + (f" {units[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % size
    joint = " and " if 0 < rest < 100 else " "
    return f"{spoken(number // size)} {name}" + (f"{joint}{spoken(rest)}" if rest else "")


class WordList:
    """Words of one slot: common or rare by a fixed chance, then by frequency rank r as 1 / (r + shift).

    That is Zipf's law with Mandelbrot's shift within each of the two.
    """

    def __init__(self, words: list[str], rng: np.random.Generator, *, rare_draws: float) -> None:
        ranked = rng.permutation(sorted(set(words))).tolist()
        ranked.sort(key=lambda w: -zipf(w, "en"))  # ties stay in random order
        rare = [w for w in ranked if is_rare(w)]
        self.rare_draws = rare_draws
        self.unseen = set(rng.permutation(rare)[: round(UNSEEN_TYPES * len(rare))].tolist())
        self._common = _ranked([w for w in ranked if not is_rare(w)])
        self._rare = _ranked([w for w in rare if w not in self.unseen])
        self._unseen = _ranked([w for w in rare if w in self.unseen])
        self.seen = set(ranked) - self.unseen

    def draw(self, rng: np.random.Generator, *, test: bool) -> str:
        """One word; in a test sentence a share of the rare draws are words that no training sentence holds."""
        rare, unseen, rank = rng.random(3)
        words, law = self._common
        if rare < self.rare_draws:
            words, law = self._unseen if test and unseen < UNSEEN_DRAWS else self._rare
        return words[int(np.searchsorted(law, rank, side="right"))]


def _ranked(words: list[str]) -> tuple[list[str], np.ndarray]:
    """Words by falling frequency, and the running sum of the law they are drawn by."""
    weight = 1 / (np.arange(len(words)) + max(30, len(words) / 20))
    return words, np.cumsum(weight) / weight.sum()


@cache
def _lists() -> dict[str, WordList]:
    rng = np.random.default_rng([SEED, 0])
    rare_draws = tomllib.loads((TEXT / "lexicon.toml").read_text())["rare_draws"]
    given = dict(_words("lexicon.toml"))
    suffixes, unfit = tuple(_words("wordfreq.toml")["suffixes"]), _words("wordfreq.toml")["unfit"]
    ranked = [w for w in wordfreq.top_n_list("en", 400_000, wordlist="large") if w.isascii() and w.isalpha()]
    ranked = [w for w in ranked if not any(part in w for part in unfit)]
    given["word"] = [w for w in ranked[:6000] if len(w) > 2 and zipf(w, "en") > 3.8]
    common, inflections = set(ranked[:30_000]), _words("wordfreq.toml")["inflections"]
    rare = [w for w in ranked if 4 < len(w) < 14 and is_rare(w) and zipf(w, "en") > 1.5]
    given["word"] += [w for w in rare if (len(w) > 6 and w.endswith(suffixes)) or _inflects(w, common, inflections)]
    for name, parts in tomllib.loads((TEXT / "composed.toml").read_text()).items():
        made = (a + b for a in parts["first"].split() for b in parts["last"].split() if a[-1] != b[0])
        given[name] += [w for w in made if is_rare(w) and not any(part in w for part in unfit)]
    return {name: WordList(words, rng, rare_draws=rare_draws.get(name, 0.0)) for name, words in given.items()}


def _inflects(word: str, common: set[str], endings: list[str]) -> bool:
    """Whether a common word and one of the endings make the word: "riskier", "subverting", "rewordable"."""
    for ending in endings:
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 3:
            continue
        stems = {stem, stem + "e"}
        if stem[-1] == "i":
            stems.add(stem[:-1] + "y")
        if stem[-1] == stem[-2]:
            stems.add(stem[:-1])
        if stems & common:
            return True
    return False


@cache
def _frames() -> tuple[list[str], np.ndarray]:
    rows = [line.split("|") for line in _lines("frames.txt")]
    weights = np.array([float(weight) for weight, _ in rows])
    return [frame.strip() for _, frame in rows], np.cumsum(weights) / weights.sum()


@cache
def _lines(name: str) -> list[str]:
    return [s for s in (TEXT / name).read_text().splitlines() if s and not s.startswith("#")]


def _fill(slot: str, rng: np.random.Generator, test: bool) -> str:
    match slot:
        case "count":
            return spoken(int(np.exp(rng.uniform(np.log(2), np.log(999)))))
        case "ordinal":
            ordinals = _words("numbers.toml")["ordinals"]
            return ordinals[rng.integers(len(ordinals))]
        case "year":
            return f"{spoken(int(rng.integers(15, 21)))} {spoken(int(rng.integers(10, 100)))}"
        case "time":
            minutes = ["", " fifteen", " thirty", " forty five", f" {spoken(int(rng.integers(10, 60)))}"]
            return spoken(int(rng.integers(1, 13))) + minutes[rng.integers(5)]
        case _:
            return _lists()[slot].draw(rng, test=test)


def sentence(rng: np.random.Generator, *, test: bool = False) -> str:
    """One sentence, lower case, letters and spaces only.

    Args:
        rng: the only source of chance.
        test: draw a share of the rare words from those no training sentence holds.
    """
    frames, law = _frames()
    text = frames[int(np.searchsorted(law, rng.random(), side="right"))]
    if rng.random() < 0.3:
        openings = _lines("openings.txt")
        text = f"{openings[rng.integers(len(openings))]} {text}"
    if rng.random() < 0.4:
        endings = _lines("endings.txt")
        text = f"{text} {endings[rng.integers(len(endings))]}"
    text = re.sub(r"\{(\w+)\}", lambda m: _fill(m[1], rng, test), text)
    return re.sub(r"\ba (?=[aeio])", "an ", text)


def sentences(split: str, count: int, *, avoid: set[str]) -> Iterator[str]:
    """``count`` sentences of a split, none of them in ``avoid``, which grows by them.

    Sentences of splits whose name begins with "test" hold words that the others never do.
    """
    rng = np.random.default_rng([SEED, *split.encode()])
    least = 0
    while count:
        text = sentence(rng, test=split.startswith("test"))
        words = text.split()
        if text not in avoid and len(words) <= LONGEST and sum(map(is_rare, words)) >= least:
            least = 2 if split == "train" and rng.random() < DENSE else 0
            avoid.add(text)
            count -= 1
            yield text


def unseen_words() -> set[str]:
    """Rare words that only test sentences hold; one kept from training in one list may be drawn from another."""
    lists = _lists().values()
    return set().union(*(words.unseen for words in lists)) - set().union(*(words.seen for words in lists))
