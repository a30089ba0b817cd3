"""Speech from the Hugging Face hub, streamed through ``datasets``, and from folders in the hub's formats.

A data set is named ``hub:OWNER/NAME[@REVISION]:[CONFIG/]SPLIT``, with ``[:N]`` at the end for the first N rows:
``hub:openslr/librispeech_asr:clean/test``, ``hub:facebook/voxpopuli:en/test``,
``hub:openslr/librispeech_asr:clean/train.100[:2000]``, ``hub:OWNER/NAME@refs/convert/parquet:en/test``. A folder that
holds Parquet or Arrow files (a clone of such a repository) is named ``FOLDER:[CONFIG/]SPLIT``.

Audio is never decoded by ``datasets`` (which would need torchcodec): a row's encoded bytes are kept as they are
and read by ``tarq.data.audio``. So a whole split is held in memory in its compressed form; ``[:N]`` bounds it.

A known corpus is recognised by its columns, which its file declares (``HUB``); any other set is read by the usual
column names. Either way the intake notes which. Where ids repeat (FLEURS numbers sentences, which several people read),
the row's number is appended to the id.

A row is not trusted: of the files it names, only those below the data set's own location are opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from tarq.data.audio import SUFFIXES
from tarq.data.intake import Intake
from tarq.data.rowfiles import encoded
from tarq.data.utterance import Utterance, stated_language
from tarq.errors import DataError

PREFIX = "hub:"
#: Location of data set repositories, for fsspec.
LOCATION = "hf://datasets/"
#: Columns tried if no corpus claims the set; texts in the Open ASR Leaderboard's order.
TEXTS = ("text", "sentence", "normalized_text", "transcript", "transcription")
IDS = ("id", "utterance_id", "audio_id", "segment_id", "uniq_id", "file", "path")
LANGUAGES = ("locale", "lang_id", "language", "lang")
SPEAKERS = ("speaker_id", "speaker", "client_id")
_PART = re.compile(r"(?:(?P<config>.+)/)?(?P<split>[^/\[]*)(?:\[:(?P<rows>\d+)\])?")


@dataclass(frozen=True)
class HubColumns:
    """How a corpus's rows on the hub are read.

    Attributes:
        name: of the corpus; its text conventions also apply to a set that no corpus claims by its columns but
            that is called so (the configurations of ESB).
        needs: columns by which it is recognised.
        id, text, speaker, entities: columns.
        languages: columns that may state the language; the first that holds a tag or a name is used.
        transcript: from text to transcript by the corpus's conventions; None if it is not to be scored.
        repository, rows: a repository that ``datasets`` cannot read as it is, and a function from its location and
            the part asked for to its rows.
    """

    name: str
    needs: tuple[str, ...]
    id: str = "id"
    text: str = "text"
    speaker: str | None = None
    entities: str | None = None
    languages: tuple[str, ...] = ("language",)
    transcript: Callable[[str], str | None] = str
    repository: str | None = None
    rows: Callable[[str, str | None], Iterator[dict[str, Any]]] | None = None


def is_hub(source: str) -> bool:
    """Whether a source names a data set of the hub."""
    return source.startswith(PREFIX)


def is_saved(source: Path) -> bool:
    """Whether ``source`` is a folder with Parquet or Arrow files."""
    return source.is_dir() and any(any(source.rglob(f"*.{suffix}")) for suffix in ("parquet", "arrow"))


def load_hub(source: str, corpora: Sequence[HubColumns], intake: Intake) -> list[Utterance]:
    """The utterances of a data set of the hub, in its order, their audio in memory.

    Args:
        source: ``hub:OWNER/NAME…``.
        corpora: what columns known corpora have.
        intake: counts what is left out.

    Raises:
        DataError: ``datasets`` is not installed, the set cannot be read, has no audio, or too many rows have none.
    """
    name, _, part = source.removeprefix(PREFIX).partition(":")
    repository, _, revision = name.partition("@")
    if not repository.strip():
        raise DataError(f"{source!r} names no data set: write hub:OWNER/NAME")
    own = next((c for c in corpora if c.rows is not None and c.repository == repository), None)
    if own is None or own.rows is None:
        asked, limit = _bounded(source, part)
        dataset = _open(source, repository, revision or None, asked)
        called = f"{PurePath(repository).name}:{asked}"
        return _read(source, dataset, called, corpora, limit, intake, _place(repository))
    _require_datasets(source)
    asked, limit = _bounded(source, part)
    rows = own.rows(LOCATION + name, asked or None)
    intake.remark(f"{source}: read as {own.name}")
    return _utterances(source, rows, "audio", own, limit, intake, _place(repository))


def load_saved(source: Path, part: str | None, corpora: Sequence[HubColumns], intake: Intake) -> list[Utterance]:
    """The utterances of a folder with Parquet or Arrow files, as ``load_hub`` reads them.

    Raises:
        DataError: see ``load_hub``.
    """
    name = str(source) if part is None else f"{source}:{part}"
    asked, limit = _bounded(name, part or "")
    dataset = _open_saved(name, source, asked) if _is_saved_to_disk(source) else _open(name, str(source), None, asked)
    return _read(name, dataset, f"{source.name}:{asked}", corpora, limit, intake, source)


def _place(repository: str) -> str | Path:
    """Location of a repository's files."""
    location = LOCATION + repository
    return location if "://" in location else Path(location)


def is_dataset(data: object) -> bool:
    """Whether an object is one of ``datasets``, of whatever kind; ``datasets`` is not imported for it."""
    return type(data).__module__.partition(".")[0] == "datasets"


def load_dataset_object(data: Any, corpora: Sequence[HubColumns], intake: Intake) -> list[Utterance]:
    """The utterances of a ``datasets.Dataset`` or ``IterableDataset``; its rows may name any file on this machine.

    Raises:
        DataError: it is a ``DatasetDict`` of several splits, or see ``load_hub``.
    """
    name = str(getattr(data, "builder_name", None) or type(data).__name__)
    return _read(name, _only_split(name, data, ""), name, corpora, None, intake, None)


def undecoded(dataset: Any, column: str) -> Any:
    """A streamed data set whose audio column yields ``{"path", "bytes"}``, whatever its files are."""
    import datasets

    @dataclass
    class Undecoded(datasets.Audio):
        # Audio(decode=False) would do, but data sets made of files (audiofolder, webdataset) are
        # re-encoded on the way, for which Audio needs torchcodec even though the audio is encoded already.
        decode: bool = False

        def encode_example(self, value: Any) -> dict[str, Any]:
            return {"path": value, "bytes": None} if isinstance(value, str) else value

    return dataset.cast_column(column, Undecoded())


def _read(
    source: str,
    dataset: Any,
    called: str,
    corpora: Sequence[HubColumns],
    limit: int | None,
    intake: Intake,
    location: str | Path | None,
) -> list[Utterance]:
    """The rows of a data set as utterances.

    Args:
        called: its name and part, which may be those of a known corpus.
        location: below which its rows may name files; None for any file of this machine.
    """
    import datasets

    features = dataset.features or {}
    names = list(features)
    audio = [name for name in names if isinstance(features[name], datasets.Audio)]
    # Tables made without `datasets` have the bytes, but do not declare them as audio.
    audio += [name for name in names if isinstance(features[name], dict) and "bytes" in features[name]]
    if not audio:
        raise DataError(f"{source}: no audio column; it has {', '.join(names) or 'none that are declared'}")
    column = "audio" if "audio" in audio else audio[0]
    known = next((c for c in corpora if set(c.needs) <= set(names)), None)
    columns = known or _usual(names, called, corpora)
    _remark_columns(source, columns, known is not None, column, names, intake)
    classes = {name: f for name, f in features.items() if isinstance(f, datasets.ClassLabel)}
    plain = isinstance(features[column], datasets.Audio)

    def rows() -> Iterator[dict[str, Any]]:
        for row in undecoded(dataset, column) if plain else dataset:
            # -1 is a row without a label.
            yield row | {
                n: f.int2str(row[n]) if row[n] >= 0 else None for n, f in classes.items() if row[n] is not None
            }

    return _utterances(source, rows(), column, columns, limit, intake, location)


def _remark_columns(
    source: str, columns: HubColumns, known: bool, audio: str, names: Sequence[str], intake: Intake
) -> None:
    """Note in the intake which columns are read as what."""
    if known:
        intake.remark(f"{source}: read as {columns.name}, by its columns {', '.join(columns.needs)}")
        return
    taken = {"audio": audio, "id": columns.id, "text": columns.text, "speaker": columns.speaker}
    taken |= {"entities": columns.entities, "language": next((n for n in columns.languages if n in names), None)}
    listed = ", ".join(f"{what} from {name!r}" for what, name in taken.items() if name)
    others = [name for name in names if name not in taken.values()]
    convention = f", transcripts by the conventions of {columns.name}" if columns.name else ""
    rest = f"; not read: {', '.join(others)}" if others else ""
    intake.remark(f"{source}: columns guessed by their names: {listed}{convention}{rest}")
    if not columns.text:
        intake.remark(f"{source}: no column of transcripts; looked for {', '.join(TEXTS)}")


def _bounded(source: str, part: str) -> tuple[str, int | None]:
    """A part without its ``[:N]``, and N."""
    match = _PART.fullmatch(part)
    if match is None:
        raise DataError(f"{source}: {part!r} is not a part; write [CONFIG/]SPLIT, with [:N] for the first N rows")
    rows = match["rows"]
    if rows is not None and not int(rows):
        raise DataError(f"{source}: [:{rows}] asks for no rows; give a number of at least 1")
    return part.partition("[")[0], None if rows is None else int(rows)


def _require_datasets(source: str) -> None:
    if find_spec("datasets") is None:
        raise DataError(f"{source}: the hub and its formats are read with `datasets`: pip install 'tarq[hub]'")


def _open(source: str, repository: str, revision: str | None, asked: str) -> Any:
    _require_datasets(source)
    import datasets

    config, _, split = asked.rpartition("/")
    with _naming_source(source):
        dataset = datasets.load_dataset(
            repository, config or None, split=split or None, revision=revision, streaming=True
        )
    return _only_split(source, dataset, config)


def _is_saved_to_disk(source: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote a folder."""
    return (source / "dataset_dict.json").is_file() or (source / "state.json").is_file()


def _open_saved(source: str, folder: Path, asked: str) -> Any:
    _require_datasets(source)
    import datasets

    with _naming_source(source):
        for state in (folder / "state.json", *folder.glob("*/state.json")):
            named = (
                [file["filename"] for file in json.loads(state.read_text())["_data_files"]] if state.is_file() else []
            )
            if any(PurePath(name).name != name for name in named):
                raise DataError(f"{state}: it names data files in other folders, which are not opened; save it again")
        dataset = datasets.load_from_disk(str(folder))
        if asked and isinstance(dataset, dict) and asked in dataset:
            return dataset[asked]
    if asked:
        have = f"it has {', '.join(dataset)}" if isinstance(dataset, dict) else "it has no parts: leave it out"
        raise DataError(f"{source}: no split {asked!r}; {have}")
    return _only_split(source, dataset, "")


def _only_split(source: str, dataset: Any, config: str) -> Any:
    if not isinstance(dataset, dict):
        return dataset
    if len(dataset) != 1:
        at = f"{config}/" if config else ""
        names = ", ".join(f"{at}{name}" for name in sorted(map(str, dataset)))
        raise DataError(f"{source}: several splits; name one of them, as SOURCE:SPLIT: {names}")
    return next(iter(dataset.values()))


@contextmanager
def _naming_source(source: str) -> Iterator[None]:
    """Turn any error within the block into a DataError that names the source."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the network, the hub, fsspec and pyarrow all raise their own errors
        text = " ".join(str(error).split("\nExample of usage")[0].split())
        if "scripts are no longer supported" in text:
            mend = (
                "give its Parquet copy, hub:OWNER/NAME@refs/convert/parquet:CONFIG/SPLIT, or download the corpus and "
                "give its folder"
            )
        elif not is_hub(source):
            mend = "it is damaged, or no data set in Parquet or Arrow files: write it again"
        else:
            mend = "correct the name, or check the network; a gated set needs its terms accepted and `hf auth login`"
        raise DataError(f"{source}: cannot be read ({type(error).__name__}: {text}); {mend}") from error


def _usual(names: Sequence[str], called: str, corpora: Sequence[HubColumns]) -> HubColumns:
    """The usual columns, with the text conventions of the corpus that the set is named after."""
    found = [next((n for n in usual if n in names), None) for usual in (IDS, TEXTS, SPEAKERS, ("entities",))]
    own = next((c for c in corpora if c.name in called.lower()), None)
    name, transcript = ("", str) if own is None else (own.name, own.transcript)
    return HubColumns(name, (), found[0] or "", found[1] or "", found[2], found[3], LANGUAGES, transcript)


def _utterances(
    source: str,
    rows: Iterable[dict[str, Any]],
    audio: str,
    columns: HubColumns,
    limit: int | None,
    intake: Intake,
    location: str | Path | None,
) -> list[Utterance]:
    utterances = []
    used = {columns.id, columns.text, columns.speaker, columns.entities, "language"}
    seen: set[str] = set()
    with _naming_source(source):
        for number, row in enumerate(islice(rows, limit)):
            given = row.get(columns.id)
            name = _without_suffix(str(given)) if given not in (None, "") else f"{number:06}"
            if name in seen and not columns.needs:
                name = f"{name}-{number:06}"
            seen.add(name)
            written = row.get(columns.text)
            text = None if written is None else columns.transcript(str(written))
            if written is not None and text is None:
                intake.left_out[f"not to be scored, by the text conventions of {columns.name}"] += 1
                continue
            try:
                audio_of_row = encoded(row[audio], source, name, location)
            except DataError as error:
                intake.broken(name, error)
                continue
            speaker = row.get(columns.speaker or "")
            utterances.append(
                Utterance(
                    id=name,
                    audio=audio_of_row,
                    text=text,
                    speaker=None if speaker in (None, "", "None", "N/A") else str(speaker),
                    entities=tuple(map(str, row.get(columns.entities or "") or ())),
                    extra={k: v for k, v in row.items() if k not in used and isinstance(v, str | int | float | bool)}
                    | _language(row, columns),
                )
            )
    return utterances


def _language(row: dict[str, Any], columns: HubColumns) -> dict[str, str]:
    """The language a row states, in the form of ``Utterance.extra``; empty if it states none."""
    stated = (stated_language(str(row[column])) for column in columns.languages if row.get(column))
    language = next(filter(None, stated), None)
    return {} if language is None else {"language": language}


def _without_suffix(name: str) -> str:
    return name[: -len(PurePath(name).suffix)] if PurePath(name).suffix.lower() in SUFFIXES else name
