"""Shared fixtures: a tiny random Whisper with its own tokenizer, and a few seconds of made-up speech."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of workers beside each other wait for each other. Processes that tests start inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Triton kernels run on CPU tensors. It must be set before Triton is imported, which transformers does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"

SENTENCES = [
    "the committee met in Reykjavik on the ninth of March",
    "doctor Okonkwo prescribed amoxicillin twice a day",
    "she sells the house by the river",
    "flight 4471 to Ouagadougou leaves at half past six",
    "they will come back to the old town next year",
    "the quick brown fox jumps over the lazy dog",
    "Professor Wojciechowski explained the eigenvalue problem",
    "it was a very good day for all of us",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the real model or a GPU skip, saying so, where there is none."""
    reasons = {
        "assets": None if ASSETS.is_dir() else f"no real model and speech at {ASSETS.parent.name}/{ASSETS.name}",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the real model and speech; tests that use it carry ``@pytest.mark.assets``."""
    return ASSETS


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper on disk: 2 + 2 layers, width 128, 2 s windows, float16, no processor file."""
    folder = tmp_path_factory.mktemp("model") / "tiny-whisper"
    make_model(folder)
    return folder


@pytest.fixture
def record_launches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a module's Triton kernels told to a function when they are launched, instead of run, while the test's
    ``monkeypatch`` lasts: the kernel, all arguments by name, those given by name."""

    class Recorder:
        def __init__(self, kernel: Any, launch: Callable[[Any, dict, dict], None]) -> None:
            self.kernel, self.launch = kernel, launch

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def launched(*arguments: Any, **constants: Any) -> None:
                given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
                self.launch(self.kernel, given, constants)

            return launched

    def record(module: Any, names: Sequence[str], launch: Callable[[Any, dict, dict], None]) -> None:
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), launch))

    return record


#: Follows a program that defines ``answer``.
ANSWER_ALL = """
import json, sys

for line in sys.stdin:
    print("answer", json.dumps(answer(**json.loads(line))), flush=True)
"""


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Callable]]:
    """A Python process for many jobs, since it takes longer to import transformers than to do most of them.

    ``program`` defines ``answer(**job)``. A job and its answer are what JSON can hold; the process ends with the first
    job that fails, and its error is the test's.
    """

    @contextmanager
    def start(program: str, **environment: str) -> Iterator[Callable[..., Any]]:
        command = [sys.executable, "-P", "-c", f"{program}\n{ANSWER_ALL}"]
        with (
            (tmp_path_factory.mktemp("answering") / "errors.txt").open("w+") as errors,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=os.environ | environment,
            ) as process,
        ):  # fmt: skip

            def ask(**job: object) -> Any:
                assert process.poll() is None, "it ended with an earlier job"
                print(json.dumps(job), file=process.stdin, flush=True)
                answer = next((line for line in process.stdout if line.startswith("answer ")), None)
                assert answer, errors.seek(0) or errors.read()[-3000:]
                return json.loads(answer.removeprefix("answer "))

            yield ask

    return start


@pytest.fixture
def in_two() -> Callable[..., subprocess.CompletedProcess]:
    """Run a program, or ``-m`` and a module, in two processes, each on one thread as torchrun has it; a hang fails."""

    def run(*command: object, code: int = 0) -> subprocess.CompletedProcess:
        launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        own = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launch, *map(str, command)], capture_output=True, text=True, env=own, timeout=500, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def alone() -> Callable[..., None]:
    """A command in this process, on one thread as torchrun has it: sums of float32 products depend on how threads split
    them."""
    from typer.testing import CliRunner

    from tarq.bench.measure import threads
    from tarq.terminal.cli import app

    def run(*arguments: object) -> None:
        with threads(1):
            result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    return run


#: Runs commands one after the other in the same processes.
COMMANDS = """
import json, sys
from tarq import distributed
from tarq.terminal.cli import app

with distributed.process_group():
    for command in json.loads(sys.argv[1]):
        assert not app(command, standalone_mode=False), command
"""


@pytest.fixture
def quantizes_as_one(alone: Callable, in_two: Callable, tmp_path: Path) -> Callable[..., None]:
    """``tarq quantize`` in two processes: the checkpoint of one, written once. Each job is a line of options."""
    from safetensors.torch import load_file

    from tarq.report import FILE_NAME

    def check(model: Path, manifest: Path, *jobs: str) -> None:
        program = tmp_path / "commands.py"
        program.write_text(COMMANDS)
        folders = {job: [tmp_path / f"{i} in {count}" for count in ("one", "two")] for i, job in enumerate(jobs)}

        def command(job: str, folder: Path) -> list[str]:
            fixed = ["quantize", model, folder, "--calibration", manifest, "--group-size", 32]
            return [*map(str, fixed), *job.split()]

        for job, (folder, _) in folders.items():
            alone(*command(job, folder))
        done = in_two(program, json.dumps([command(job, folder) for job, (_, folder) in folders.items()]))
        assert done.stdout.count("layers quantized") == len(jobs)
        assert done.stdout.count("in 2 processes") == len(jobs)
        for job, pair in folders.items():
            one, two = (load_file(folder / "model.safetensors") for folder in pair)
            assert one.keys() == two.keys(), job
            assert all(torch.equal(one[name], two[name]) for name in one), job
            reports = [json.loads((folder / FILE_NAME).read_text()) for folder in pair]
            assert [r["processes"] for r in reports] == [1, 2]
            assert reports[0]["calibration"] == reports[1]["calibration"], job
            for a, b in zip(reports[0]["layers"], reports[1]["layers"], strict=True):
                tags = [(layer["name"], layer["positions"], layer["tail_positions"]) for layer in (a, b)]
                assert tags[0] == tags[1], job
                assert a["alpha"] == pytest.approx(b["alpha"], rel=1e-6), job

    return check


@pytest.fixture(scope="session")
def walk_hidden_states() -> Callable[..., None]:
    """The walk's hidden states behind every block are the model's own: in full precision before anything changes, and
    on the quantized path those of the quantized model."""
    import tarq
    from tarq.report import Reporter
    from tarq.walk.walk import Walk

    def of_model(recognizer: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Behind each block, in one plain run of the model."""
        seen: dict[str, list[torch.Tensor]] = {}

        def keep(name: str) -> Callable:
            return lambda module, args, out: seen.setdefault(name, []).append(out[0] if isinstance(out, tuple) else out)

        blocks = [named for stage in recognizer.stages() for named in stage.blocks]
        handles = [block.register_forward_hook(keep(name)) for name, block in blocks]
        with torch.no_grad():
            recognizer.logits(batch)
        for handle in handles:
            handle.remove()
        assert seen.keys() == {name for name, _ in blocks}
        return {name: torch.cat(pieces).flatten(0, -2) for name, pieces in seen.items()}

    def check(recognizer: Any, batches: Sequence[Any], config: tarq.TarqConfig) -> None:
        """Quantizes the recognizer's model; ``config`` needs a residual, or there is no full-precision path."""
        before = [of_model(recognizer, batch) for batch in batches]
        walked = [
            [(block.name, p.full.hidden.flatten(0, -2), p.quantized.hidden.flatten(0, -2)) for p in block.pairs]
            for block in Walk(recognizer, batches, config, Reporter()).blocks()
        ]
        after = [of_model(recognizer, batch) for batch in batches]
        assert [block[0][0] for block in walked] == list(before[0])
        for block in walked:
            for (name, full, quantized), model_before, model_after in zip(block, before, after, strict=True):
                torch.testing.assert_close(full, model_before[name], rtol=1e-3, atol=1e-4, msg=name)
                torch.testing.assert_close(quantized, model_after[name], rtol=1e-3, atol=1e-4, msg=name)
                assert not torch.allclose(full, quantized, rtol=1e-3, atol=1e-4)

    return check


@pytest.fixture(scope="session")
def write_model() -> Callable[..., None]:
    """:func:`make_model`, for tests that want other widths."""
    return make_model


def make_model(
    folder: Path,
    *,
    width: int = 128,
    ffn: int | None = None,
    layers: int = 2,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> None:
    """Write a random Whisper with a byte-level BPE trained on ``SENTENCES``; ``ffn`` is twice the width by default."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], bos_token=special[1], pad_token=special[0]
    )
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=ffn or 2 * width,
        decoder_ffn_dim=ffn or 2 * width,
        max_source_positions=100,
        max_target_positions=64,
        num_mel_bins=80,
        decoder_start_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.15,
        # LayerNorm gains and biases start at one and zero; nothing else is needed for a model that reacts.
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).to(dtype)
    generation = model.generation_config
    generation._from_model_config = False  # or loading would rebuild it from config.json
    generation.no_timestamps_token_id, generation.is_multilingual, generation.max_length = 2, False, 24
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=2).save_pretrained(folder)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL manifest of eight utterances of noise with a syllable's rhythm, 0.6 to 1.9 s long."""
    import soundfile  # here, since a GPU machine may lack it

    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    lines = []
    for i, text in enumerate(SENTENCES):
        seconds = 0.6 + 0.18 * i
        t = np.arange(int(16000 * seconds)) / 16000
        tone = np.sin(2 * np.pi * (120 + 30 * i) * t) * (1 + np.sin(2 * np.pi * 4 * t))
        wave = 0.1 * tone + 0.05 * rng.standard_normal(len(t))
        soundfile.write(folder / f"u{i}.wav", wave.astype(np.float32), 16000)
        lines.append(json.dumps({"id": f"u{i}", "audio": f"u{i}.wav", "text": text, "duration": seconds}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
