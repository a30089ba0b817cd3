"""A run that is stopped goes on where it was, and ends as one that was not stopped, to the bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tarq
import tarq.walk.identity as identities
import tarq.walk.reparametrize as reparametrizing
from tarq.checkpoint import unfinished
from tarq.files import write_whole
from tarq.method.metrics import Plain
from tarq.method.residuals import NoResidual
from tarq.method.solvers import Sweep
from tarq.report import Reporter, versions

CONFIG = tarq.TarqConfig(group_size=32, samples=5, batch_size=2, tail_threshold=4)

#: Methods and settings, each with something that a run has to find again.
CASES = {
    "refined": {},  # reparametrized; biases; moments of the encoder's output, shared by the decoder's blocks
    "tarq": {},
    "rtn": {},
    "gptq": {"symmetric": False, "group_size": 128},
    "rsq": {},  # attention of the full-precision model
    "guided": {"metric": "guided"},  # gradients
    "kronecker": {"solver": "kronecker"},  # gradients of outputs
    "tarq-awq": {},  # input scales
    "target-bits": {"target_bits": 5.0},
    "recomputed": {"activation_memory": 0.0},
    "ignore": {"ignore": ("model.decoder.layers.1", "model.encoder.layers.0.fc1")},
}


class Stops(Reporter):
    """Ends the run as Ctrl-C does, after so many layers."""

    def __init__(self, layers):
        self.left, self.notes, self.starts, self.phases = layers, [], [], []

    def start(self, layers):
        self.starts.append(layers)

    def phase(self, text, total=None):
        self.phases.append((text, total))

    def layer(self, record):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def never():
    return Stops(-1)


def config_of(case):
    preset = case if case in tarq.config.PRESETS else "refined"
    chosen = {"group_size": 32, "samples": 5, "batch_size": 2, "tail_threshold": 4} | CASES.get(case, {})
    return tarq.TarqConfig.preset(preset, **chosen)


def quantized(model_folder, manifest, config, reporter=None, **given):
    """The tensors of a quantized model, and all of its report that does not depend on the clock."""
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, manifest, config, reporter=reporter, **given)
    state = recognizer.model.state_dict()
    return state, asdict(report) | {"seconds": None, "memory": None}


def same(one, other):
    (state, report), (states, reports) = one, other
    assert state.keys() == states.keys()
    for name, tensor in state.items():
        assert tensor.dtype == states[name].dtype
        assert torch.equal(tensor, states[name]), name
    assert report == reports


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_same_result(case, model_folder, manifest, tmp_path):
    """Stopped several times: first within the first block, where nothing is kept yet."""
    config, folder = config_of(case), tmp_path / "run"
    expected = quantized(model_folder, manifest, config)
    total = sum(not layer["skipped"] for layer in expected[1]["layers"])
    for layers, finished in ((3, 0), (7, 1), (9, 2), (1, 2)):
        reporter = Stops(layers)
        with pytest.raises(KeyboardInterrupt) as stopped:
            quantized(model_folder, manifest, config, reporter, resume=folder)
        if finished or config.input_scales != "none" or config.target_bits:
            (note,) = stopped.value.__notes__
            assert note.startswith(f"{finished} of 4 blocks are finished and kept in {folder}")
            assert len(list(folder.glob("[0-9]*"))) == finished
        else:
            assert not folder.exists()
    reporter = never()
    same(quantized(model_folder, manifest, config, reporter, resume=folder), expected)
    assert ("through 2 finished blocks", 2) in reporter.phases
    done = sum(layer["stage"] == "encoder" and not layer["skipped"] for layer in expected[1]["layers"])
    assert reporter.starts == [total - done]
    assert "reparametrizing" not in [text for text, _ in reporter.phases] or config.reparametrize != "none"
    again = never()
    same(quantized(model_folder, manifest, config, again, resume=folder), expected)
    assert again.starts == []


def test_a_block_in_which_nothing_is_quantized_is_finished_too(model_folder, manifest, tmp_path):
    config = replace(CONFIG, ignore=("model.encoder.layers.0",))
    expected = quantized(model_folder, manifest, config)
    with pytest.raises(KeyboardInterrupt):
        quantized(model_folder, manifest, config, Stops(7), resume=tmp_path / "run")
    assert len(list((tmp_path / "run").glob("[0-9]*"))) == 2
    same(quantized(model_folder, manifest, config, resume=tmp_path / "run"), expected)


@pytest.fixture
def kept(model_folder, manifest, tmp_path):
    """A folder with the encoder's blocks, and part of what a run of ``CONFIG`` is to end with."""
    stop(model_folder, manifest, CONFIG, tmp_path / "run")
    return tmp_path / "run"


def stop(model_folder, manifest, config, folder):
    with pytest.raises(KeyboardInterrupt):
        quantized(model_folder, manifest, config, Stops(14), resume=folder)
    assert len(list(folder.glob("[0-9]*"))) == 2


@pytest.fixture(scope="module")
def expected(model_folder, manifest):
    return quantized(model_folder, manifest, CONFIG)


def edited(manifest, folder, change):
    """A copy of a manifest beside its audio, with its rows and files changed."""
    shutil.copytree(manifest.parent, folder)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    change(rows, folder)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "manifest.jsonl"


def other_text(rows, folder):
    for row in rows:
        row["text"] = row["text"].replace("the", "a")


def other_audio(rows, folder):
    for row in rows:
        wave, rate = soundfile.read(folder / row["audio"])
        soundfile.write(folder / row["audio"], wave * 0.99, rate)


def other_ids(rows, folder):
    for row in rows:
        row["id"] += "x"


SETTINGS = {
    "bits": 3, "group_size": 16, "samples": 4, "batch_size": 3, "seed": 1, "metric": "rarebal", "residual": "none",
    "solver": "sweep", "tail_threshold": 3.0, "damp": 0.02, "ignore": ("model.decoder.layers.1",),
    "bits_for": {"decoder": 8}, "scale_dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_refused_by_name(name, kept, model_folder, manifest):
    with pytest.raises(tarq.ResumeError, match=rf"run is of another run: .*setting {name} .*delete that folder"):
        quantized(model_folder, manifest, replace(CONFIG, **{name: SETTINGS[name]}), resume=kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_text, r"utterances u\d, u\d transcript differs"),
        (other_audio, r"utterances u\d, u\d audio differs"),
        (other_ids, r"utterances u\d, u\d is gone"),
    ],
)
def test_other_speech_is_refused_by_its_utterances(change, said, kept, model_folder, manifest, tmp_path):
    with pytest.raises(tarq.ResumeError, match=said):
        quantized(model_folder, edited(manifest, tmp_path / "other", change), CONFIG, resume=kept)


def test_another_model_is_refused(kept, model_folder, manifest, tmp_path, write_model):
    """One other number in a matrix outside the blocks is enough."""
    with safe_open(model_folder / "model.safetensors", "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state["model.encoder.conv1.weight"][0, 0, 0] += 1
    shutil.copytree(model_folder, tmp_path / "other")
    save_file(state, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(tarq.ResumeError, match="model weights differs"):
        quantized(tmp_path / "other", manifest, CONFIG, resume=kept)
    write_model(tmp_path / "wider", ffn=512)
    with pytest.raises(tarq.ResumeError, match=r"model config\.json differs; model weights differs"):
        quantized(tmp_path / "wider", manifest, CONFIG, resume=kept)


def test_other_libraries_and_machines_are_refused(kept, model_folder, manifest, monkeypatch):
    def refused(said):
        with pytest.raises(tarq.ResumeError, match=said):
            quantized(model_folder, manifest, CONFIG, resume=kept)

    with monkeypatch.context() as patch:
        patch.setattr(identities, "versions", lambda: versions() | {"torch": "1.0"})
        refused(r"version of torch was '[^']+', is '1\.0'")
    with monkeypatch.context() as patch:
        patch.setattr(identities, "own_files", lambda: "1" * 64)
        refused("tarq's own files differs")
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE")
        refused("environment instruction set was '[^']+', is 'NONE'")
    with monkeypatch.context() as patch:
        patch.setenv("TARQ_BACKEND", "reference")
        refused("environment TARQ_BACKEND was None, is 'reference'")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        refused(rf"threads \(OMP_NUM_THREADS\) was {threads}, is {threads + 1}")
    finally:
        torch.set_num_threads(threads)


def test_what_decides_nothing_may_change(kept, model_folder, manifest, tmp_path, expected):
    """The place of model and speech, memory, how many files may be broken, and how the utterances are named."""
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(expected[1]["calibration"]["ids"]))
    shutil.copytree(model_folder, tmp_path / "moved")
    config = replace(CONFIG, activation_memory=0.0, max_bad=2)
    moved = edited(manifest, tmp_path / "speech", lambda *_: None)
    state, _ = quantized(tmp_path / "moved", moved, config, resume=kept)
    same((state, None), (expected[0], None))


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_block_is_quantized_again(which, kept, model_folder, manifest, expected):
    file = sorted(kept.glob("[0-9]*"))[which]
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    reporter = never()
    same(quantized(model_folder, manifest, CONFIG, reporter, resume=kept), expected)
    (note,) = (note for note in reporter.notes if str(file) in note)
    assert "is damaged" in note
    assert reporter.starts == [32 - 6 * which]


def test_a_full_disk_does_not_end_a_run(model_folder, manifest, tmp_path, monkeypatch, expected):
    def refuse(path, content):
        if path.name.startswith("0001"):
            raise tarq.OutputError(f"could not write {path}: No space left on device")
        write_whole(path, content)

    reporter = never()
    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "write_whole", refuse)
        same(quantized(model_folder, manifest, CONFIG, reporter, resume=tmp_path / "run"), expected)
    (note,) = (note for note in reporter.notes if "No space left" in note)
    assert "it goes on after 1 of 4 blocks" in note
    reporter = never()
    same(quantized(model_folder, manifest, CONFIG, reporter, resume=tmp_path / "run"), expected)
    assert reporter.starts == [32 - 6]


def test_weights_that_come_out_otherwise_are_refused(kept, model_folder, manifest, monkeypatch):
    """All that decides them is compared; if they differ nevertheless, no block of the earlier run is taken."""
    monkeypatch.setattr(reparametrizing, "rotation_of", lambda size: torch.eye(size, dtype=torch.float64))
    with pytest.raises(tarq.ResumeError, match=r"model\.encoder\.layers\.0 has other weights.*delete the folder"):
        quantized(model_folder, manifest, CONFIG, resume=kept)
    assert len(list(kept.glob("[0-9]*"))) == 2


def test_what_cannot_be_compared_or_kept_is_refused_by_name(model_folder, manifest, tmp_path):
    for given in ({"metric": Plain()}, {"residual": NoResidual()}, {"solver": Sweep()}):
        (kind,) = given
        with pytest.raises(tarq.ConfigError, match=f"resume: the {kind} is given as an object"):
            quantized(model_folder, manifest, CONFIG, resume=tmp_path / "run", **given)
    with pytest.raises(tarq.ConfigError, match="resume: the solver SpQR makes more than codes"):
        quantized(model_folder, manifest, replace(CONFIG, solver="spqr"), resume=tmp_path / "run")
    with pytest.raises(tarq.ConfigError, match="resume is 3: give a path"):
        quantized(model_folder, manifest, CONFIG, resume=3)
    assert not (tmp_path / "run").exists()


def test_an_error_that_would_come_again_leaves_nothing(model_folder, manifest, tmp_path, monkeypatch):
    """A run whose third block fails is not to be gone on from."""

    class Fails(Stops):
        def layer(self, record):
            if record.name.startswith("model.decoder"):
                raise tarq.CalibrationError("NaN")

    with pytest.raises(tarq.CalibrationError) as error:
        quantized(model_folder, manifest, CONFIG, Fails(-1), resume=tmp_path / "run")
    assert not hasattr(error.value, "__notes__")
    assert not (tmp_path / "run").exists()


def test_given_sensitivities_are_compared(model_folder, manifest, tmp_path):
    config = replace(CONFIG, target_bits=4.5)
    names = [f"model.decoder.layers.{i}.fc1" for i in range(2)]
    table = [tarq.Sensitivity((name,), 128 * 256, {4: 2.0 - i, 8: 0.0}) for i, name in enumerate(names)]
    expected = quantized(model_folder, manifest, config, sensitivities=table)
    with pytest.raises(KeyboardInterrupt):
        quantized(model_folder, manifest, config, Stops(14), resume=tmp_path / "run", sensitivities=table)
    with pytest.raises(tarq.ResumeError, match="sensitivities differs"):
        quantized(model_folder, manifest, config, resume=tmp_path / "run", sensitivities=table[:1])
    with pytest.raises(tarq.ResumeError, match="sensitivities"):
        quantized(model_folder, manifest, config, resume=tmp_path / "run")
    same(quantized(model_folder, manifest, config, resume=tmp_path / "run", sensitivities=table), expected)


def test_saving_removes_the_folder(kept, model_folder, manifest, tmp_path, expected):
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, manifest, CONFIG, resume=kept)
    assert report.seconds > 0
    tarq.save(recognizer, tmp_path / "out", report, resume=kept)
    assert not kept.exists()
    assert tarq.Report.read(tmp_path / "out").layers == report.layers
