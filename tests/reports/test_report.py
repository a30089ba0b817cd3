"""tarq report: figures that can be calculated by hand, a self-contained page, escaping, errors, audio."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

import tarq
from tarq.errors import DataError, OutputError
from tarq.reports import clips, text
from tarq.reports import study as studies
from tarq.reports.figures import Scale, Series, columns
from tarq.reports.make import write_report
from tarq.reports.markup import element
from tarq.reports.statistics import FIGURES as STUDIED
from tarq.scoring.bootstrap import Difference
from tarq.scoring.figures import FIGURES as SCORED
from tarq.terminal.cli import app

from .conftest import cell

BAD = "<script>alert(1)</script>"


class Outline(HTMLParser):
    """What a page is made of; every element has to be closed in its turn."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())


def report(tmp_path: Path, *files: Path, **options) -> tuple[Outline, str, str]:
    """The page's outline, its source, and the summary."""
    written = write_report(files, tmp_path / "out", **options)
    source = written.page.read_text()
    return Outline(source), source, written.summary.read_text()


def test_figures_are_those_of_the_results(study, write, tmp_path):
    page, _, summary = report(tmp_path, write(study))
    # Every target of an utterance takes the same damage, so resamples differ by draws alone: 0.4 and 0.2 of GPTQ.
    (panel,) = studies.panels(study, tmp_path, {})
    ours = panel.values["ours", "delta_nll_rare"]
    assert (ours.value, ours.low, ours.high) == pytest.approx((0.15, 0.1, 0.2))
    assert panel.recovered["ours"].value == pytest.approx(0.5)
    assert panel.recovered["ours"].low == pytest.approx(0.5)
    assert panel.differences["ours", "delta_nll_rare"].high == pytest.approx(-0.1)
    for shown in (page.text, summary):
        assert "Ours undoes 50 % [50, 50] of what GPTQ costs rare words" in shown.replace("\\", "").replace(
            "\u00a0", " "
        )
        assert "+0.300" in shown
        assert "−0.150 [−0.200, −0.100]" in shown
    assert "**−0.150 [−0.200, −0.100]**" in summary
    # Ours less GPTQ is −0.2 in one draw and −0.1 in the other.
    (pair,) = panel.pairs
    assert pair.over_draws["delta_nll_rare"] == pytest.approx(0.05 * 2**0.5)
    assert f"{text.size('delta_nll_rare', pair.detectable['delta_nll_rare'])} · 0.071" in page.text
    assert " · 0.071" in summary
    # Rare-WER: two of three rare words in every draw of GPTQ, in one of two of ours.
    assert panel.values["gptq", "rare_wer"].value == pytest.approx(2 / 3)
    assert panel.values["ours", "rare_wer"].value == pytest.approx(1 / 3)


def test_the_same_rates_by_kind_and_frequency(study, tmp_path):
    (panel,) = studies.panels(study, tmp_path, {})
    rates = {(g.arm, g.kind): g for g in panel.groups}
    assert rates["gptq", "rare"].rate.value == pytest.approx(2 / 3)
    assert rates["gptq", "rare"].words == 3
    assert rates["gptq", "numerals"].rate.value == 0
    assert rates["ours", "rare"].change.value == pytest.approx(1 / 3)
    bands = [g for g in panel.bands if g.arm == "full precision"]
    assert sum(g.words for g in bands) == sum(len(text.split()) for text in study["models"]["tiny"]["references"])
    assert all(g.rate.value == 0 for g in bands)
    # Inserted words are charged, too: "a moxa cillin" is two more words than were said.
    assert sum(g.substitutions + g.deletions for g in panel.bands if g.arm == "gptq") == 2
    assert sum(g.insertions for g in panel.bands if g.arm == "gptq") == 3


def test_damage_by_word_frequency(study, write, tmp_path):
    """Of the two rare targets of each of u0 and u1, one is of Zipf 0–1; GPTQ does all its damage there."""
    model = study["models"]["tiny"]
    model["positions"] |= {"Zipf 0–1": [1, 1, 0, 0], "Zipf 2–3": [1, 1, 0, 1], "Zipf 3–4": [0] * 4, "no word": [1] * 4}
    for key, found in study["cells"].items():
        sums = {"tiny/gptq/0": 0.8, "tiny/gptq/1": 0.4, "tiny/ours/0": 0.3, "tiny/ours/1": 0.1}[key]
        for figure, factor in (("delta_nll", 1.0), ("kl", 0.5)):
            found[figure] |= {"Zipf 0–1": [sums * factor, sums * factor, 0, 0], "Zipf 2–3": [0.0] * 4}
            found[figure] |= {"Zipf 3–4": [0.0] * 4, "no word": [-0.01] * 4}
    file = write(study)
    (panel,) = studies.panels(study, tmp_path, {})
    known = {(one.arm, one.group, one.figure): one for one in panel.frequency}
    assert {one.group: one.targets for one in panel.frequency} == {"Zipf 0–1": 2, "Zipf 2–3": 3, "no word": 4}
    ours, base = known["ours", "Zipf 0–1", "delta_nll"], known["gptq", "Zipf 0–1", "delta_nll"]
    # Every target there takes the same, so resamples differ by draws alone.
    assert (base.value.value, base.value.low, base.value.high) == pytest.approx((0.6, 0.4, 0.8))
    assert ours.value.value == pytest.approx((0.3 + 0.1) / 2)
    assert (ours.difference.value, ours.difference.low) == pytest.approx((-0.4, -0.5))
    assert base.difference is None
    assert known["ours", "Zipf 0–1", "kl"].value.value == pytest.approx(0.1)
    assert known["ours", "Zipf 2–3", "delta_nll"].value.value == 0
    page, source, summary = report(tmp_path, file)
    section = Outline(re.search(r'<section id="frequency".*?</section>', source, re.DOTALL).group()).text
    assert "ΔNLL +0.600 [+0.400, +0.800] KL 0.300 [0.200, 0.400]" in section
    assert "ΔNLL +0.200 [+0.100, +0.300] −0.400 [−0.500, −0.300] KL 0.100 [0.050, 0.150]" in section
    assert "Zipf 0–1 2 targets Zipf 2–3 3 targets no word 4 targets" in section
    assert "| Ours | ΔNLL | +0.200 [+0.100, +0.300]; **−0.400 [−0.500, −0.300]** |" in summary
    assert "ΔNLL and KL by word frequency" not in page.text
    # Cells of before are told of.
    for figure in ("delta_nll", "kl"):
        del study["cells"]["tiny/gptq/1"][figure]["Zipf 0–1"]
        del study["cells"]["tiny/gptq/1"][figure]["Zipf 2–3"]
        del study["cells"]["tiny/gptq/1"][figure]["Zipf 3–4"]
        del study["cells"]["tiny/gptq/1"][figure]["no word"]
    (panel,) = studies.panels(study, tmp_path, {})
    known = {(one.arm, one.group, one.figure): one for one in panel.frequency}
    assert known["gptq", "Zipf 0–1", "delta_nll"].value.value == pytest.approx(0.8)
    assert known["ours", "Zipf 0–1", "delta_nll"].difference.value == pytest.approx(0.3 - 0.8)  # of the shared draw
    line = "ΔNLL and KL by word frequency: the results hold none in 1 of 4 cells; this tarq measures them."
    assert panel.absent[line] == "frequency"


def test_insertions_loops_and_shifts_of_timestamps(study, write, tmp_path):
    """Beside the other word scores, with intervals over draws and utterances, as far as cells have them."""
    model = study["models"]["tiny"]
    ones = [1, 1, 1, 1]
    for found, looping, shift in (
        (model, [0] * 4, [0.0] * 4),
        *((study["cells"][f"tiny/gptq/{draw}"], [1, 0, 0, 0], [0.5, 0.1, 0.0, 0.0]) for draw in (0, 1)),
    ):
        found["words"] |= {
            "signs": {"empty": [0] * 4, "looping": looping, "utterances": ones},
            "times": {"end": [1.0] * 4, "shift": shift, "utterances": ones},
        }
    study["cells"]["tiny/gptq/0"]["words"]["all"]["insertions"] = [5, 0, 0, 0]
    (panel,) = studies.panels(study, tmp_path, {})
    assert panel.values["gptq", "insertions"].value == pytest.approx(5 / 25 / 2)
    assert panel.values["gptq", "looping"].value == 0.25
    assert panel.values["gptq", "timestamp_shift"].value == pytest.approx(0.15)
    assert ("ours", "looping") not in panel.values
    page, _, _ = report(tmp_path, write(study))
    assert "insertions % looping % timestamp shift s" in page.text
    assert "0.150 [0.000, 0.375]" in page.text


def test_the_first_figure_fits_a_screen(study, write, tmp_path):
    for i in range(9):
        study["arms"][f"arm{i}"] = {"title": f"Arm {i}"}
        study["cells"] |= {f"tiny/arm{i}/{draw}": cell(0.3 - 0.01 * i, 0.1) for draw in (0, 1)}
    _, source, _ = report(tmp_path, write(study))
    first, *more = (Outline(svg).text for svg in re.findall(r'<svg [^>]*class="figure">.*?</svg>', source)[:2])
    # Ours comes first in the study and is the best: it and the seven named after it.
    assert [f"Arm {i} " in first for i in range(9)] == [True] * 7 + [False] * 2
    assert "Ours" in first
    assert all(f"Arm {i} " in more[0] for i in range(9))
    assert "All 10 methods" in source
    study["cells"] |= {f"tiny/arm8/{draw}": cell(0.01, 0.1) for draw in (0, 1)}
    _, source, _ = report(tmp_path, write(study))
    first = Outline(re.search(r'<svg [^>]*class="figure">.*?</svg>', source).group()).text
    assert [f"Arm {i} " in first for i in range(9)] == [True] * 6 + [False] * 2 + [True]


def test_where_errors_are_by_place_and_speaker(study, write, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "MIN_UTTERANCES", 2)
    (panel,) = studies.panels(study, tmp_path, {})
    places = {(g.arm, g.kind): g for g in panel.places}
    # Of seven and of six words the fourth: it lies in the third fifth.
    assert {kind for (arm, kind), g in places.items() if arm == "gptq" and g.substitutions + g.deletions} == {"3rd"}
    assert places["gptq", "3rd"].substitutions + places["gptq", "3rd"].deletions == 2
    # Places 0 to 6 of 7, 0 to 5 of 6, 0 to 6 of 7 and 0 to 4 of 5 make 2 + 2 + 2 + 1 words in the first fifth.
    assert places["gptq", "1st fifth"].words == 7
    assert sum(g.words for (arm, _), g in places.items() if arm == "gptq") == 25
    # Every target of a draw takes the same damage, whoever said it.
    spoken = {(one.arm, one.group, one.figure): one for one in panel.speakers}
    assert len(spoken) == 2 * 2 * 2
    for speaker, rare, common in (("a", 4, 9), ("b", 1, 11)):
        one, other = (spoken["ours", speaker, f"delta_nll_{kind}"] for kind in ("rare", "common"))
        assert (one.value.value, one.targets) == (pytest.approx(0.15), rare)
        assert (other.value.value, other.targets) == (pytest.approx(0.05), common)
    page, _, summary = report(tmp_path, write(study))
    for shown in (page.text, summary):
        assert "+0.150 [+0.100, +0.200]" in shown
        assert "Rounding loses most of the output, by its square, in decoder.fc1 (1 %)." in shown.replace("\u00a0", " ")
    # Damage that differs by speaker.
    for key in ("tiny/gptq/0", "tiny/gptq/1"):
        study["cells"][key]["delta_nll"]["rare"] = [2.0, 2.0, 0.0, 0.5]
    (panel,) = studies.panels(study, tmp_path, {})
    found = {
        one.group: one.value.value for one in panel.speakers if (one.arm, one.targets) in (("gptq", 4), ("gptq", 1))
    }
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(0.5)}
    study["models"]["tiny"]["speakers"] = ["a", "a", "a", "b"]
    (panel,) = studies.panels(study, tmp_path, {})
    assert panel.speakers == []
    assert panel.absent["Damage by speaker: the results name no two speakers of 2 utterances each."] == "errors"


def test_words_lost_say_how_often_and_by_whom(study, write, tmp_path):
    (panel,) = studies.panels(study, tmp_path, {})
    found = {word.word: word for word in panel.changed}
    assert set(found) == {"amoxicillin", "ouagadougou"}
    assert [(h.arm, h.times, h.draws) for h in found["amoxicillin"].hypotheses] == [("gptq", 2, 2), ("ours", 1, 2)]
    page, source, _ = report(tmp_path, write(study))
    assert "GPTQ (2 of 2) · Ours (1 of 2)" in page.text
    assert "<mark>amoxicillin</mark>" in source
    assert "<mark>a moxa cillin</mark>" in source


def test_the_page_asks_for_nothing_and_can_be_read_without_eyes(study, write, speech, tmp_path):
    page, source, _ = report(tmp_path, write(study), data=[speech])
    assert not re.search(r"(?:src|href)=\"(?!#)", source)
    assert not re.search(r"url\(|@import|https?://", source)
    assert page.all("html") == [{"lang": "en"}]
    assert "width=device-width" in str(page.all("meta"))
    assert "prefers-color-scheme: dark" in source
    for name, attributes in page.tags:
        if name == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
        if name == "svg" and attributes.get("class") == "figure":
            assert attributes["role"] == "img"
        if name == "audio":
            assert attributes["aria-label"].startswith("Audio of u")
    assert source.count("<table>") == source.count("<thead>")
    assert all(part.startswith("<title>") for part in re.findall(r'class="figure">(.{7})', source))
    links = [a["href"] for a in page.all("a")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert len(ids) == len(set(ids))


def test_everything_foreign_is_escaped(study, write, tmp_path):
    foreign = copy.deepcopy(study)
    model = foreign["models"].pop("tiny")
    model["ids"][0] = BAD
    model["references"] = [f"{BAD} | amoxicillin **x**", *model["references"][1:]]
    model["hypotheses"] = model["references"]
    foreign["models"]["t<i>ny"] = model
    foreign["arms"]["ours"]["title"] = f"ours {BAD}"
    foreign["settings"]["title"] = f"A {BAD}"
    foreign["pairs"] = [["ours", "gptq", BAD]]
    foreign["cells"] = {
        key.replace("tiny", "t<i>ny"): value | {"notes": [BAD], "device": BAD} for key, value in study["cells"].items()
    }
    foreign["cells"]["t<i>ny/gptq/0"]["hypotheses"] = [BAD, *study["models"]["tiny"]["references"][1:]]
    foreign["cells"]["t<i>ny/ours/0"]["layers"] = [{"name": BAD, "alpha": 0.5}]
    page, source, summary = report(tmp_path, write(foreign))
    assert len(page.all("script")) == 1  # the page's own
    assert "i" not in [name for name, _ in page.tags]
    assert BAD not in source
    assert BAD in page.text
    assert "<" not in re.sub(r"\\<", "", summary)
    assert "| amoxicillin" not in summary.replace("\\|", "")


def test_markup_escapes_text_and_attributes():
    made = element("p", "<b>", element("i", "x"), title='"><script>')
    assert made == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;<i>x</i></p>'


def test_audio_is_in_the_page_once_and_can_be_left_out(study, write, speech, tmp_path, monkeypatch):
    two = copy.deepcopy(study)
    two["models"]["base"] = two["models"]["tiny"]
    two["cells"] |= {key.replace("tiny", "base"): value for key, value in study["cells"].items()}
    page, source, _ = report(tmp_path, write(two), data=[speech])
    sources = json.loads(re.search(r'id="clips">(.*?)</script>', source).group(1))
    assert len(sources) == 2  # of u0 and u1; both models show both
    assert sorted(int(a["data-clip"]) for a in page.all("audio")) == [0, 0, 1, 1]
    kind, data = sources[0].split(";base64,")
    assert kind == "data:audio/mpeg"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert rate == 16000
    assert len(samples) / rate == pytest.approx(0.5, abs=0.15)
    page, source, _ = report(tmp_path, write(two), data=[speech], audio=False)
    assert not page.all("audio")
    assert "it was not asked for" in page.text
    monkeypatch.setattr(clips.embed, "__defaults__", (1, clips.CHARACTERS))
    page, source, _ = report(tmp_path, write(two), data=[speech])
    assert len(json.loads(re.search(r'id="clips">(.*?)</script>', source).group(1))) == 1
    assert "a page holds 1 clips at most" in page.text


def test_audio_of_the_results_and_what_cannot_be_read(study, write, speech, tmp_path):
    study["models"]["tiny"]["audio"] = ["speech/u0.wav", "speech/gone.wav", None, None]
    page, _, _ = report(tmp_path, write(study))
    assert len(page.all("audio")) == 1
    assert "Audio of 1 utterance could not be read: u1" in page.text


def test_what_is_absent_is_said(study, write, tmp_path):
    for key in ("references", "words", "hypotheses"):
        del study["models"]["tiny"][key]
    del study["pairs"]
    study["cells"] = {key: {part: cell[part] for part in ("delta_nll", "kl")} for key, cell in study["cells"].items()}
    page, source, summary = report(tmp_path, write(study))
    # A section without content says in one line what it lacks.
    lacking = {
        "swing": ["Swing over calibration pools: the results hold one pool."],
        "frequency": [
            "Word errors by word frequency: the results hold no transcripts (a grid's decode asks for them).",
            "ΔNLL and KL by word frequency: the results hold none; this tarq measures them.",
        ],
        "words": ["Rare words lost and regained: the results hold no transcripts (a grid's decode asks for them)."],
        "errors": ["Errors by place in the utterance: the results hold no transcripts", "hold no word counts"],
        "layers": ["λ, α and loss by layer: the results hold no layers."],
    }
    for name, lines in lacking.items():
        section = Outline(re.search(rf'<section id="{name}".*?</section>', source, re.DOTALL).group()).text
        for line in lines:
            assert line in section
            assert line in summary.replace("\\", "")
    assert "rare WER %" not in page.text
    assert "ΔNLL rare" in page.text


def test_swing_over_pools_and_further_conditions(study, write, tmp_path):
    cells = study["cells"]
    study["cells"] = {f"{key}/uniform/8/4/dev": value for key, value in cells.items()}
    study["cells"]["tiny/ours/0/r-top/8/4/dev"] = cells["tiny/gptq/0"]
    study["cells"]["tiny/gptq/0/uniform/8/3/dev"] = cells["tiny/gptq/0"]
    main, further = studies.panels(study, tmp_path, {})
    (swing,) = [s for s in main.swings if s.figure == "delta_nll_rare"]
    assert (swing.arm, swing.swing.value) == ("ours", pytest.approx(0.4 - 0.15))
    assert further.figures_only
    assert "W3" in further.title
    page, _, _ = report(tmp_path, write(study))
    assert "Swing over calibration pools" in page.text
    assert "Other settings" in page.text
    assert "swing +0.250" in page.text


def test_a_share_that_may_be_none_is_no_headline(study, write, tmp_path):
    study["cells"]["tiny/ours/0"]["delta_nll"]["rare"] = [1.4, 0.0, 0.0, 0.0]
    (panel,) = studies.panels(study, tmp_path, {})
    assert panel.recovered["ours"].low < 0 < panel.recovered["ours"].value
    page, _, _ = report(tmp_path, write(study))
    assert "tiny: no method is shown to undo what GPTQ costs rare words; the largest share is Ours’s," in page.text
    # The best of those that are shown to is told of, not one that may do nothing.
    study["cells"] |= {f"tiny/sure/{draw}": cell(0.25 - 0.1 * draw, 0.1) for draw in (0, 1)}
    page, _, _ = report(tmp_path, write(study))
    assert "tiny: sure undoes" in page.text


def test_shares_of_damage_that_may_be_none_are_not_told(study, tmp_path):
    for draw in (0, 1):
        study["cells"][f"tiny/gptq/{draw}"]["delta_nll"]["rare"] = [1.0, -1.0, 0, 0.1]
    (panel,) = studies.panels(study, tmp_path, {})
    assert panel.recovered == {}
    assert any("is not clear of 0" in line for line in panel.absent)


WRONG = {
    "settings is missing": lambda r: r.pop("settings"),
    "format is 2": lambda r: r.update(format=2),
    "models/tiny/ids is missing": lambda r: r["models"]["tiny"].pop("ids"),
    "models/tiny/ids names an utterance twice": lambda r: r["models"]["tiny"].update(ids=["u"] * 4),
    "models/tiny/references has 1 entries for 4": lambda r: r["models"]["tiny"].update(references=["x"]),
    "cells/tiny/gptq/0/kl/rare has 2 entries for 4": lambda r: r["cells"]["tiny/gptq/0"]["kl"].update(rare=[1, 2]),
    r"cells/tiny/gptq/0/kl/rare\[1\] is null": lambda r: r["cells"]["tiny/gptq/0"]["kl"].update(rare=[1, None, 2, 3]),
    r"cells/tiny/gptq/0/hypotheses\[0\] is 3": lambda r: r["cells"]["tiny/gptq/0"].update(hypotheses=[3, "", "", ""]),
    "cells/tiny/gptq/0/words/rare/deletions is missing": lambda r: r["cells"]["tiny/gptq/0"]["words"]["rare"].pop(
        "deletions"
    ),
    "cells is empty": lambda r: r.update(cells={}),
    "cells/big/gptq/0 is of none of the models tiny": lambda r: r["cells"].update({"big/gptq/0": {}}),
    "cell 'tiny/gptq/one' is not named": lambda r: r["cells"].update({"tiny/gptq/one": {}}),
    r"pairs\[0\] is \[\"a\"\]": lambda r: r.update(pairs=[["a"]]),
    "kl/odd has no positions": lambda r: r["cells"]["tiny/gptq/0"]["kl"].update(odd=[1, 2, 3, 4]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_results_are_refused_by_file_and_key(study, write, tmp_path, message):
    WRONG[message](study)
    with pytest.raises(DataError, match=message):
        write_report([write(study)], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_wrong_files_are_refused(study, write, tmp_path):
    out = tmp_path / "out"
    for content, message in (
        ("{", "is not a results file"),
        ("[]", r"the whole is \[\], not an object"),
        ("{}", "has neither"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(DataError, match=f"x.json.*{message}"):
            write_report([tmp_path / "x.json"], out)
    with pytest.raises(DataError, match=r"gone\.json does not exist"):
        write_report([tmp_path / "gone.json"], out)
    other = copy.deepcopy(study) | {"settings": {"samples": 9}}
    with pytest.raises(DataError, match="different settings"):
        write_report([write(study), write(other, "other.json")], out)
    with pytest.raises(DataError, match="no arm 'gtpq' to compare with: it has gptq, ours"):
        write_report([write(study)], out, base="gtpq")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not make the folder"):
        write_report([write(study)], tmp_path / "file")


def test_files_of_one_study_go_together(study, write, tmp_path):
    first, second = copy.deepcopy(study), copy.deepcopy(study)
    first["cells"] = {key: cell for key, cell in study["cells"].items() if "gptq" in key}
    second["cells"] = {key: cell for key, cell in study["cells"].items() if "ours" in key}
    _, whole, _ = report(tmp_path, write(study))
    _, both, _ = report(tmp_path, write(first, "a.json"), write(second, "b.json"))
    assert both.replace("a.json, b.json", "results.json") == whole


def test_the_command_writes_both_and_says_what_is_missing(study, write, speech, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["report", str(write(study)), "--out", str(out), "--no-audio"])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert "hold one pool" in " ".join(result.output.split())
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md"}
    result = CliRunner().invoke(app, ["report", str(tmp_path / "gone.json"), "--out", str(out)])
    assert result.exit_code == 1
    assert "gone.json does not exist" in " ".join(result.output.split())


def test_a_figure_has_one_title_everywhere():
    for figure in SCORED:
        assert text.heading(figure.name) == STUDIED.get(figure.name, figure).title == figure.title
    assert text.heading("rare_wer") == "rare WER %"


def test_tarq_offers_it(study, write, tmp_path):
    assert tarq.write_report([write(study)], tmp_path / "out").page.is_file()


def test_a_figure_keeps_its_marks_within_its_width():
    assert Scale(0, 1).at(2) == 100
    assert Scale(-1, 1).at(0) == 50
    one = Series("a", [Difference(0.1, -5.0, 5.0, 0.1), None])
    drawn = str(columns(["x", "y"], [one], "alternative", "points"))
    assert "<title>alternative</title>" in drawn
    heights = [float(y) for y in re.findall(r'\by[12]?="([-\d.]+)"', drawn)]
    assert min(heights) >= 0
    assert max(heights) <= 240
    assert not re.search(r'x[12]?="1\d\d\.\d', drawn)
