"""benchmarks/study: cells equal tarq.evaluate, a stopped run goes on, processes share work, other studies are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tarq
from benchmarks.study import bench
from benchmarks.study.__main__ import _without, main
from benchmarks.study.grid import Job
from benchmarks.study.results import ResultsFile, read_results
from tarq.data.corpora.registry import load_utterances
from tarq.data.utterance import Utterance
from tarq.errors import ConfigError, OutputError
from tarq.models.whisper import WhisperRecognizer
from tarq.words.bands import NAMES

ROOT = Path(__file__).parents[2]
GRID = """
title: A small study
models: [tiny-whisper]
corpora: {speech: speakers.jsonl, noise: manifest.jsonl}
arms:
  rtn: {preset: rtn}
  gptq: {preset: gptq}
  tarq: {preset: tarq}
calibration:
  uniform: {corpora: speech}
scored:
  speech: {half: report}
  noise: {half: all, utterances: 3}
product: {samples: 3, draws: 1}
families: {shares: [[tarq, gptq]]}
"""


@pytest.fixture(scope="module")
def speech(manifest):
    """The manifest with four speakers; the halves are utterances 0, 1, 4, 5 and 2, 3, 6, 7."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["speaker"] = "abcd"[i // 2 % 2 * 2 + i // 4]
    path = manifest.with_name("speakers.jsonl")
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def command(model_folder, speech, tmp_path):
    """The arguments of a run of the grid above."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)

    def of(*options, file=tmp_path / "results.json"):
        places = ["--models", model_folder.parent, "--speech", speech.parent, "--device", "cpu"]
        return [str(part) for part in ("run", grid, "--out", file, *places, *options)]

    return of


@pytest.fixture
def study(command, monkeypatch, capsys, tmp_path):
    """Run it; gives the results, what was printed, and what was quantized."""

    def run(*options, **where):
        measured, quantized = [], bench.quantized
        with monkeypatch.context() as patch:
            patch.setattr(bench, "quantized", lambda f, d, c: measured.append((c.method, c.seed)) or quantized(f, d, c))
            main(command(*options, **where))
        return read_results(where.get("file", tmp_path / "results.json")), capsys.readouterr().out, measured

    return run


def draws(count, decode=0):
    return ("--set", f"product.draws={count}", "--set", f"product.decode={decode}")


def key(arm, draw, label="tiny-whisper", name="speech"):
    return f"{label}/{arm}/{draw}/uniform/3/4/{name}"


def test_a_stopped_study_goes_on_and_its_table_is_the_mean_over_draws(study):
    first, _, measured = study()
    assert measured == [("rtn", 0), ("gptq", 0), ("tarq", 0)]
    _, out, measured = study(*draws(2), "--minutes", 0)
    assert measured == []
    assert "no time left for tiny-whisper/gptq/1" in out
    both, out, measured = study(*draws(2, decode=1))
    # The cells of the first draw had no transcripts; rounding to nearest has one cell for all draws.
    assert measured == [("rtn", 0), ("gptq", 0), ("tarq", 0), ("gptq", 1), ("tarq", 1)]
    assert study(*draws(2, decode=1))[2] == []
    cells = both["cells"]
    for name, cell in first["cells"].items():
        assert cells[name]["kl"] == cell["kl"]
        assert len(cells[name]["hypotheses"]) == 4
    assert cells[key("tarq", 0)]["kl"] != cells[key("tarq", 1)]["kl"]

    count = sum(both["models"]["tiny-whisper"]["positions"]["rare"])
    damage = {
        arm: [sum(cells[key(arm, draw)]["delta_nll"]["rare"]) / count for draw in (0, 1)] for arm in ("gptq", "tarq")
    }
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in out.splitlines() if line.startswith("| ")}
    assert rows["gptq"][1].startswith(f"{np.mean(damage['gptq']):+.3f} [".replace("-", "−"))
    difference = np.mean(damage["tarq"]) - np.mean(damage["gptq"])
    assert f"{difference:+.3f} [".replace("-", "−") in rows["tarq − gptq"][1]
    assert rows["full precision"][1] == "–"
    words = both["models"]["tiny-whisper"]["words"]["all"]
    wrong = sum(sum(words[kind]) for kind in ("substitutions", "deletions", "insertions"))
    assert rows["full precision"][6].startswith(f"{100 * wrong / sum(words['words']):.1f} [")
    assert "4 utterances of 2 speakers" in out
    assert "| shares | tiny-whisper, W4, pool uniform, 3 utterances | tarq − gptq | ΔNLL rare | 2 |" in out


def test_a_cell_is_what_evaluate_measures(study, speech, model_folder, tmp_path):
    results, _, _ = study(*draws(1, decode=1), "--set", "scored.speech.half=choose", "--only", "arm=gptq|rtn")
    assert set(results["cells"]) == {key("gptq", 0), key("rtn", 0)}
    cell, full = results["cells"][key("gptq", 0)], results["models"]["tiny-whisper"]
    model = tarq.load_recognizer(model_folder)
    report = tarq.quantize(model, speech, tarq.TarqConfig.preset("gptq", samples=3, seed=0))
    some = bench.halves("speech", load_utterances(speech))["choose"]
    assert [u.id for u in some] == ["u0", "u1", "u4", "u5"] == full["ids"]
    evaluation = tarq.evaluate({"full": model_folder, "q": model}, {"s": some}, reference="full", resamples=10)
    scores = evaluation.sets["s"].models["q"]
    for kind in ("rare", "common"):
        for figure in ("kl", "delta_nll"):
            value = sum(cell[figure][kind]) / sum(full["positions"][kind])
            assert value == pytest.approx(scores.figures[f"{figure}_{kind}"].value, rel=1e-3, abs=2e-5)
    targets = evaluation.sets["s"].targets
    assert {kind: sum(counts) for kind, counts in full["positions"].items()} == targets
    for figure in ("kl", "delta_nll"):
        whole = np.array(cell[figure]["rare"]) + cell[figure]["common"]
        np.testing.assert_allclose(sum(np.array(cell[figure][band]) for band in NAMES), whole, atol=1e-5)
        for band in (name for name in NAMES if targets[name]):
            value = sum(cell[figure][band]) / targets[band]
            # Of few targets: what the kernels of packed layers round shows more than in the means above.
            assert value == pytest.approx(scores.figures[f"{figure} {band}"].value, rel=0.02, abs=1e-3)
    assert cell["hypotheses"] == [scores.hypotheses[u.id] for u in some]
    assert full["hypotheses"] == [evaluation.sets["s"].models["full"].hypotheses[u.id] for u in some]
    assert sum(cell["words"]["all"]["deletions"]) == scores.counts["all"]["deletions"]
    biased = cell["words"]["biased"]
    errors = sum(sum(biased[kind]) for kind in ("substitutions", "deletions", "insertions"))
    assert errors / sum(biased["words"]) == pytest.approx(scores.figures["b_wer"].value)
    assert cell["signs"] == json.loads(json.dumps(scores.signs))
    signs = cell["words"]["signs"]
    assert [name for name, loops in zip(full["ids"], signs["looping"], strict=True) if loops] == cell["signs"][
        "looping"
    ]
    assert sum(cell["words"]["all"]["insertions"]) / sum(cell["words"]["all"]["words"]) == pytest.approx(
        scores.figures["insertions"].value
    )
    assert sum(signs["looping"]) / 4 == scores.figures["looping"].value
    # Everything that redoes it: the configuration, and the arm as the grid has it.
    assert cell["config"] == report.config | {"scale_dtype": cell["config"]["scale_dtype"]}
    assert [layer["name"] for layer in cell["layers"]] == [layer.name for layer in report.layers]
    assert [layer["loss"] for layer in cell["layers"]] == pytest.approx([la.loss for la in report.layers], rel=1e-3)
    assert results["arms"]["tarq"] == {"preset": "tarq", "overrides": {}, "title": "tarq"}
    assert results["pairs"] == [["tarq", "gptq", "shares"]]
    audio = [(tmp_path / path).resolve() for path in full["audio"]]
    assert audio == [(speech.parent / f"{name}.wav").resolve() for name in full["ids"]]
    assert full["references"][0].startswith("the committee")
    assert full["speakers"] == ["a", "a", "b", "b"]


def test_other_sets_are_scored_with_the_same_quantized_model(study):
    results, out, measured = study("--only", "arm=gptq", "--set", 'product.scored=["speech", "noise"]')
    assert measured == [("gptq", 0)]
    assert set(results["cells"]) == {key("gptq", 0), key("gptq", 0, "tiny-whisper (noise)", "noise")}
    assert len(results["models"]["tiny-whisper (noise)"]["ids"]) == 3
    assert "**tiny-whisper (noise)**" in out


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "options"), [((), ("--workers", 2)), (TORCHRUN, ())], ids=["workers", "torchrun"])
def test_two_processes_do_every_job_once(command, tmp_path, launcher, options):
    job = [sys.executable, *launcher, "-m", "benchmarks.study", *command(*draws(2), *options)]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, env=own, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "; seconds:" in line]
    assert len(told) == 5
    assert set(read_results(tmp_path / "results.json")["cells"]) == {
        key(*cell) for cell in (("rtn", 0), ("gptq", 0), ("tarq", 0), ("gptq", 1), ("tarq", 1))
    }
    assert "| tarq − gptq |" in done.stdout


CLAIM = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from benchmarks.study.results import ResultsFile
file = ResultsFile(Path(sys.argv[2]), {}, {}, [])
with file.claim("a") as mine, file.claim("b") as other:
    print(mine, other, flush=True)
    sys.stdin.read()
"""


def test_a_job_is_one_processs_until_that_ends(tmp_path):
    file = ResultsFile(tmp_path / "r.json", {}, {}, [])
    arguments = [sys.executable, "-c", CLAIM, str(ROOT), str(tmp_path / "r.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with file.claim("a") as mine:
        assert mine
        other = subprocess.Popen(arguments, **pipes)
        assert other.stdout.readline().split() == ["False", "True"]
    with file.claim("b") as mine:
        assert not mine
    with file.claim("a") as mine:
        assert mine
    other.kill()  # what a killed process had is free again
    other.wait()
    with file.claim("b") as mine:
        assert mine


def test_a_file_of_another_study_is_refused(study, tmp_path):
    study("--only", "arm=rtn")
    with pytest.raises(SystemExit, match=r"results\.json: settings/half was 'report' when it was begun, and is 'all'"):
        study("--set", "scored.speech.half=all")
    for changed in ("preset=tarq", "overrides={damp: 0.1}"):
        with pytest.raises(SystemExit, match=r"results\.json: arms/gptq was .* when it was begun"):
            study("--set", f"arms.gptq.{changed}")
    # More arms, pools and draws are the same study.
    more, _, measured = study("--only", "arm=rtn|new", "--set", "arms.new={preset: rtn, title: again}")
    assert measured == [("rtn", 0)]
    assert more["arms"]["new"]["title"] == "again"
    # Another model of the same name is told by its targets.
    stored = json.loads((tmp_path / "results.json").read_text())
    stored["models"]["tiny-whisper"]["positions"]["rare"][0] += 1
    (tmp_path / "results.json").write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="tiny-whisper was scored on other targets"):
        study()


def test_a_file_of_before_there_were_bands_is_gone_on_with(study, tmp_path):
    study("--only", "arm=rtn")
    path = tmp_path / "results.json"
    stored = json.loads(path.read_text())
    for part in (*stored["models"].values(), *stored["cells"].values()):
        for figure in {"positions", "kl", "delta_nll"} & part.keys():
            part[figure] = {kind: part[figure][kind] for kind in ("rare", "common")}
    path.write_text(json.dumps(stored))
    results, _, measured = study("--only", "arm=rtn|gptq")
    assert measured == [("gptq", 0)]
    assert list(results["cells"][key("rtn", 0)]["kl"]) == ["rare", "common"]
    assert list(results["cells"][key("gptq", 0)]["kl"]) == ["rare", "common", *NAMES]
    assert list(results["models"]["tiny-whisper"]["positions"]) == ["rare", "common", *NAMES]
    main(["tables", str(path)])  # checks the file


def test_a_grid_says_dtype_and_threads(study, tmp_path):
    before = torch.get_num_threads()
    try:
        results, _, _ = study("--only", "arm=rtn", "--set", "dtype=bfloat16", "--set", "threads=3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert results["settings"]["dtype"] == "bfloat16"
    cell = results["cells"][key("rtn", 0)]
    assert cell["threads"] == 3
    # What is measured is what rounding adds in that dtype: full precision is bfloat16, too.
    path = tmp_path / "float32.json"
    other = study("--only", "arm=rtn", file=path)[0]["cells"][key("rtn", 0)]
    assert "threads" in other
    total = {name: sum(found["kl"]["common"]) for name, found in (("bfloat16", cell), ("float32", other))}
    assert total["bfloat16"] == pytest.approx(total["float32"], rel=0.2)
    assert total["bfloat16"] != total["float32"]
    # Files of before were measured in float32.
    stored = json.loads(path.read_text())
    del stored["settings"]["dtype"]
    path.write_text(json.dumps(stored))
    assert study("--only", "arm=rtn", file=path)[2] == []
    with pytest.raises(SystemExit, match=r"settings/dtype was 'float32' when it was begun, and is 'bfloat16' now"):
        study("--only", "arm=rtn", "--set", "dtype=bfloat16", file=path)


def end_by_hand(recognizer, utterance):
    """The most likely of the times that follow all of an utterance's text."""
    first = recognizer.model.generation_config.no_timestamps_token_id + 1
    features, frames = recognizer.audio_inputs(utterance.waveform())
    ids = recognizer.prompt(utterance.text, frames=frames, timestamps=True).ids
    output = recognizer.model(
        input_features=features["input_features"][None], decoder_input_ids=torch.tensor([ids[:-2]])
    )
    return 0.02 * int(output.logits[0, -1, first:].argmax())


def test_timestamps_shift_by_what_the_end_of_the_text_moves(model_folder, speech, monkeypatch):
    # The tiny model's tokens there are ordinary ones, which is refused otherwise.
    def begin(recognizer):
        config, first = recognizer.model.config, recognizer.model.generation_config.no_timestamps_token_id + 1
        return first if first + config.max_source_positions < config.vocab_size else None

    monkeypatch.setattr(WhisperRecognizer, "timestamp_begin", property(begin))
    full = bench.full_precision(str(model_folder), "cpu", torch.float32)
    made = bench.Bench.make(full, load_utterances(speech)[:3], 2)
    other = bench.full_precision(str(model_folder), "cpu", torch.float32)
    other.model.model.decoder.layers[1].fc2.weight.data *= -3
    own, moved = made.transcribed(full)["words"]["times"], made.measure(other, True)["words"]["times"]
    with torch.no_grad():
        before, after = ([end_by_hand(model, u) for u in made.utterances] for model in (full, other))
    assert own["end"] == pytest.approx(before)
    assert own["shift"] == [0, 0, 0]
    assert moved["end"] == pytest.approx(after)
    assert moved["shift"] == pytest.approx([abs(b - a) for a, b in zip(before, after, strict=True)])
    assert sum(moved["shift"]) > 0
    assert moved["utterances"] == [1, 1, 1]
    # A model without such tokens has no shift.
    full.model.generation_config.no_timestamps_token_id = full.model.config.vocab_size - 1
    assert bench.Bench.make(full, load_utterances(speech)[:1], 1).ends == {}


def test_what_is_missing_or_wrong_is_named(study, tmp_path, monkeypatch, command):
    with pytest.raises(SystemExit, match=r"grid\.yaml: not there: .*/nothing \(--models\), .*/no\.jsonl \(--speech\)"):
        study("--set", "models={tiny-whisper: nothing}", "--set", "corpora.speech=no.jsonl")
    with pytest.raises(SystemExit, match="--only speed=1: write AXIS"):
        study("--only", "speed=1")
    with pytest.raises(SystemExit, match="--workers 0"):
        study("--workers", 0)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"bad\.json holds no study's results of format 1"):
        study(file=tmp_path / "bad.json")
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        read_results(tmp_path / "none.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        ResultsFile(tmp_path / "file" / "r.json", {}, {}, [])
    silent = [Utterance(str(i), Path("x.wav"), "a") for i in range(2)]
    with pytest.raises(ConfigError, match="speech has no two speakers"):
        bench.halves("speech", silent)


def test_a_job_that_fails_is_told_and_the_others_are_measured(study, command, capsys):
    with pytest.raises(SystemExit, match="1 jobs failed: tiny-whisper/bad/0/uniform/3/4"):
        study("--set", "arms.bad={preset: gptq, overrides: {word_frequencies: /nowhere.txt}}")
    out = capsys.readouterr().out
    assert "tiny-whisper/bad/0/uniform/3/4 failed: /nowhere.txt" in out
    assert "| tarq |" in out


def test_the_variance_table_counts_draws(study, tmp_path, capsys):
    study(*draws(2), "--only", "arm=gptq|tarq")
    main(["variance", str(tmp_path / "results.json"), "--detect", "100", "1e-9"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| tarq − gptq")]
    assert [row[1] for row in rows] == ["ΔNLL rare", "KL rare", "ΔNLL common", "KL common"]
    assert {row[6] for row in rows} == {"1"}
    assert all(row[7].strip(" |") == "∞" or int(row[7].strip(" |")) > 1 for row in rows)


@pytest.mark.parametrize(
    ("page", "results", "parts"),
    [("studies/headline", "headline", 6), ("study/RESULTS", "reparametrize", 6), ("study/RESULTS", "bars", 10)],
)
def test_a_page_shows_what_its_command_prints(capsys, page, results, parts):
    files = [ROOT / "benchmarks" / "results" / f"{results}-whisper-{model}.json" for model in ("tiny.en", "base")]
    main(["tables", *map(str, files)])
    printed = [part for part in capsys.readouterr().out.split("\n\n") if not part.startswith("| family")]
    assert len(printed) == parts  # three a model and condition; two where there is nothing to compare
    text = (ROOT / "benchmarks" / f"{page}.md").read_text()
    assert all(table.strip() in text for table in printed)


def test_options_are_handed_on_to_workers():
    assert _without(["run", "g", "--workers", "3", "--out", "f"], "--workers") == ["run", "g", "--out", "f"]
    assert _without(["run", "--workers=3", "g"], "--workers") == ["run", "g"]
    assert Job._fields[:6] == ("model", "arm", "draw", "pool", "samples", "bits")


def test_a_study_scores_weights_with_their_outliers(model_folder, manifest):
    """Layers of the solver spqr, which no checkpoint can hold, are expanded with the weights that keep 16 bits."""
    full = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset("spqr", group_size=32, samples=2)
    packed = tarq.load_recognizer(model_folder)
    tarq.quantize(packed, manifest, config)
    layer = packed.model.get_submodule("model.decoder.layers.1.fc2")
    copied, _ = bench.quantized(full, str(manifest), config)
    weight = copied.model.get_submodule("model.decoder.layers.1.fc2").weight
    assert (weight.view(-1)[layer.outlier_places] == layer.outlier_values.float()).all()
