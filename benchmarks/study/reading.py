"""A grid from its YAML file, checked key by key. README.md explains every key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml

import tarq
from benchmarks.study.grid import Arm, Block, CalibrationPool, DType, Grid, Half, Job, Order, Scored
from tarq.config import Pool
from tarq.errors import ConfigError
from tarq.presets import PRESETS

#: Fields of a configuration that the grid itself decides, by the key that does.
AXES = {
    "samples": "product/samples",
    "seed": "product/draws",
    "bits": "product/bits",
    "batch_size": "batch_size",
    "ids": "calibration",
}
KEYS = (
    *("title", "otherwise", "models", "arms", "corpora", "calibration", "scored"),
    *("product", "include", "exclude", "batch_size", "score_batch_size", "dtype", "threads", "order"),
    *("families", "bars"),
)


def load_grid(path: str | Path, settings: Sequence[str] = ()) -> Grid:
    """Read a grid.

    Args:
        settings: ``KEY=VALUE`` each, in place of what the file says: ``product.draws=2``.

    Raises:
        ConfigError: it is missing, is not YAML, or a key or value is not what it should be; names file and key.
    """
    try:
        read = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give a grid of benchmarks/study/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no grid: {' '.join(str(error).split())}") from None
    reader = _Reader(str(path))
    whole = reader.mapping(read, "", KEYS)
    for setting in settings:
        _override(reader, whole, setting)
    return reader.grid(reader.mapping(whole, "", KEYS))


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys: of two arms by one name the first would be lost silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _override(reader: _Reader, whole: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    *way, last = key.split(".")
    if not equals or not last:
        raise ConfigError(f"--set {setting}: write KEY=VALUE, such as product.draws=2")
    place: Any = whole
    for part in way:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            reader.fail(part, f"holds no keys, which --set {setting} asks for")
    place[last] = yaml.load(value, _Loader)


class _Reader:
    """Reads a grid; errors name the file and the path of the key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, key: str, wrong: str) -> NoReturn:
        raise ConfigError(f"{self.file}: {f'{key}: ' if key else ''}{wrong}")

    def mapping(self, value: Any, key: str, known: Sequence[str] | None = None, some: bool = False) -> dict[str, Any]:
        """A mapping with text for keys, of those that are known; ``some`` where it may not be empty."""
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            self.fail(key, f"must be a mapping of names to values, not {value!r}")
        if known is not None and (unknown := sorted(value.keys() - set(known))):
            self.fail(key, f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        if some and not value:
            self.fail(key, "is empty; give at least one")
        return value

    def named(self, whole: Mapping[str, Any], key: str) -> dict[str, Any]:
        """A part of the grid that names things, whose names make keys of cells."""
        if key not in whole:
            self.fail(key, "is missing")
        found = self.mapping(whole[key], key, some=True)
        for name in found:
            if not name.strip() or "/" in name:
                self.fail(f"{key}/{name}", "a name must not be empty or hold a /, which keys of cells are cut at")
        return found

    def number(self, value: Any, key: str, low: int = 1) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self.fail(key, f"must be a whole number from {low}, not {value!r}")
        return value

    def choice(self, value: Any, key: str, choices: Sequence[str]) -> Any:
        if value not in choices:
            self.fail(key, f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    def several(self, value: Any, key: str) -> list[Any]:
        """A list that is not empty and holds nothing twice; a single value counts as a list of one."""
        found = value if isinstance(value, list) else [value]
        if not found or len(set(map(repr, found))) < len(found):
            self.fail(key, f"must be one or several different values, not {value!r}")
        return found

    def names(self, value: Any, key: str, known: Sequence[str], what: str) -> tuple[str, ...]:
        """Names out of the known ones."""
        for name in (found := self.several(value, key)):
            if name not in known:
                self.fail(key, f"there is no {what} {name!r}; there are {', '.join(map(str, known))}")
        return tuple(found)

    def text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fail(key, f"must be text, not {value!r}")
        return value

    def grid(self, whole: Mapping[str, Any]) -> Grid:
        """The whole grid."""
        models = whole.get("models")
        models = dict.fromkeys(self.names(models, "models", models, "model")) if isinstance(models, list) else models
        models = self.named({"models": models} if models is not None else {}, "models")
        corpora = self.named(whole, "corpora")
        arms = {name: self.arm(arm, f"arms/{name}") for name, arm in self.named(whole, "arms").items()}
        calibration = {
            name: self.pool(pool, f"calibration/{name}", list(corpora))
            for name, pool in self.named(whole, "calibration").items()
        }
        scored = {
            name: self.scored(one, f"scored/{name}", list(corpora)) for name, one in self.named(whole, "scored").items()
        }
        # What the product leaves out: every model and arm, the first pool and set, the usual numbers.
        start = Block(
            models=tuple(models),
            arms=tuple(arms),
            pools=tuple(calibration)[:1],
            samples=(128,),
            bits=(4,),
            draws=(0,),
            scored=tuple(scored)[:1],
            decode=0,
        )
        known = {"models": list(models), "arms": list(arms), "pools": list(calibration), "scored": list(scored)}
        product = self.block(whole.get("product", {}), "product", start, known)
        more = whole.get("include") or []
        blocks = [self.block(b, f"include[{i}]", product, known) for i, b in enumerate(self.listed(more, "include"))]
        batch = self.number(whole.get("batch_size", 4), "batch_size")
        threads = whole.get("threads")
        otherwise = whole.get("otherwise")
        return Grid(
            file=self.file,
            title=self.text(whole.get("title", Path(self.file).stem), "title"),
            models={name: self.text(name if s is None else s, f"models/{name}") for name, s in models.items()},
            arms=arms,
            corpora={name: self.text(name if s is None else s, f"corpora/{name}") for name, s in corpora.items()},
            calibration=calibration,
            scored=scored,
            blocks=(product, *blocks),
            exclude=tuple(
                self.conditions(entry, f"exclude[{i}]", known)
                for i, entry in enumerate(self.listed(whole.get("exclude") or [], "exclude"))
            ),
            batch_size=batch,
            score_batch_size=self.number(whole.get("score_batch_size", batch), "score_batch_size"),
            dtype=self.choice(whole.get("dtype", "float32"), "dtype", get_args(DType)),
            threads=None if threads is None else self.number(threads, "threads"),
            order=self.choice(whole.get("order", "worth"), "order", get_args(Order)),
            pairs=tuple(self.pairs(whole.get("families") or {}, list(arms))),
            bars=self.bars(whole["bars"], list(arms), list(whole.get("families") or {})) if "bars" in whole else {},
            otherwise=None if otherwise is None else self.text(otherwise, "otherwise"),
        )

    def listed(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list):
            self.fail(key, f"must be a list, not {value!r}")
        return value

    def arm(self, value: Any, key: str) -> Arm:
        found = self.mapping(value, key, ("preset", "overrides", "title"))
        preset = found.get("preset")
        if preset not in PRESETS:
            self.fail(f"{key}/preset", f"must be one of {', '.join(PRESETS)}, not {preset!r}")
        overrides = self.fields(found.get("overrides") or {}, f"{key}/overrides")
        try:
            config = tarq.TarqConfig.preset(preset, **overrides)
            reads_audio = config.needs_statistics
        except ConfigError as error:
            self.fail(f"{key}/overrides", str(error))
        name = key.removeprefix("arms/")
        return Arm(preset, overrides, self.text(found.get("title", name), f"{key}/title"), reads_audio)

    def fields(self, value: Any, key: str) -> dict[str, Any]:
        """Fields of the configuration that the grid has no axis for."""
        found = self.mapping(value, key)
        for name in found:
            if name in AXES:
                self.fail(f"{key}/{name}", f"is not set here but by {AXES[name]}")
        return found

    def pool(self, value: Any, key: str, corpora: Sequence[str]) -> CalibrationPool:
        own = [f.name for f in fields(Pool) if f.name not in AXES]
        found = dict(self.mapping(value, key, ("corpora", *own)))
        if "corpora" not in found:
            self.fail(f"{key}/corpora", "is missing")
        names = self.names(found.pop("corpora"), f"{key}/corpora", corpora, "corpus")
        try:
            kind = Pool(**found).pool
        except ConfigError as error:
            self.fail(key, str(error))
        if (kind == "r-cross" and len(names) < 2) or (kind == "r-top" and len(names) > 1):
            self.fail(f"{key}/corpora", "r-top draws from one corpus, r-cross from several")
        return CalibrationPool(names, found)

    def scored(self, value: Any, key: str, corpora: Sequence[str]) -> Scored:
        found = self.mapping(value if value is not None else {}, key, ("corpus", "half", "utterances"))
        name = key.removeprefix("scored/")
        half = self.choice(found.get("half", "report"), f"{key}/half", get_args(Half))
        utterances = found.get("utterances")
        return Scored(
            self.names(found.get("corpus", name), f"{key}/corpus", corpora, "corpus")[0],
            half,
            None if utterances is None else self.number(utterances, f"{key}/utterances"),
        )

    def block(self, value: Any, key: str, start: Block, known: Mapping[str, Sequence[str]]) -> Block:
        """A product; what it leaves out is as in another."""
        found = self.mapping(value, key, [f.name for f in fields(Block)])
        axes: dict[str, Any] = {}
        for axis, given in found.items():
            where = f"{key}/{axis}"
            if axis in known:
                axes[axis] = self.names(given, where, known[axis], axis.removesuffix("s"))
            elif axis == "decode":
                axes[axis] = self.number(given, where, low=0)
            elif axis == "draws" and not isinstance(given, list):
                axes[axis] = tuple(range(self.number(given, where)))
            else:
                lowest = 0 if axis == "draws" else 1
                axes[axis] = tuple(self.number(each, where, lowest) for each in self.several(given, where))
        block = replace(start, **axes)
        for bits in block.bits:
            try:
                tarq.TarqConfig(bits=bits)
            except ConfigError as error:
                self.fail(f"{key}/bits", str(error))
        return block

    def conditions(self, value: Any, key: str, known: Mapping[str, Sequence[str]]) -> dict[str, tuple[Any, ...]]:
        found = self.mapping(value, key, Job._fields[:6], some=True)
        names = {"model": "models", "arm": "arms", "pool": "pools"}
        return {
            axis: self.names(given, f"{key}/{axis}", known[names[axis]], axis)
            if axis in names
            else tuple(self.number(each, f"{key}/{axis}", 0) for each in self.several(given, f"{key}/{axis}"))
            for axis, given in found.items()
        }

    def pairs(self, value: Any, arms: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        for family, pairs in self.mapping(value, "families").items():
            for i, pair in enumerate(self.listed(pairs, f"families/{family}")):
                key = f"families/{family}[{i}]"
                if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
                    self.fail(key, f"must be two arms, [OURS, BASE], not {pair!r}")
                yield (*self.names(pair, key, arms, "arm"), family)  # type: ignore[misc]

    def bars(self, value: Any, arms: Sequence[str], families: Sequence[str]) -> dict[str, Any]:
        found = self.mapping(value, "bars", ("default", "baselines", "tail"))
        if missing := [key for key in ("default", "baselines") if key not in found]:
            self.fail(f"bars/{missing[0]}", "is missing")
        (default, *more) = self.names(found["default"], "bars/default", arms, "arm")
        if more:
            self.fail("bars/default", "must be one arm")
        return {
            "default": default,
            "baselines": list(self.names(found["baselines"], "bars/baselines", arms, "arm")),
            "tail": list(self.names(found["tail"], "bars/tail", families, "family")) if "tail" in found else [],
        }
