"""What every family must do, on a tiny random model of its own transformers classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CompressedTensorsConfig

import tarq
from tarq.checkpoint.compressed_tensors import names_layer
from tarq.data.corpora.registry import load_utterances
from tarq.linear import QuantLinear
from tarq.method.moments import Moments
from tarq.report import Report, Reporter
from tarq.speech.calibration import calibration_set, make_examples
from tarq.walk.run import gather_moments
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

CONFIG = tarq.TarqConfig(group_size=32, batch_size=4, samples=4)


#: What a process does that has made none of the models.
ELSEWHERE = """
import tarq

def answer(folder, audio):
    return tarq.transcribe(tarq.load_recognizer(folder), audio)
"""


@pytest.fixture(scope="session")
def transcribed_elsewhere(answering: Callable) -> Iterator[Callable[..., list[str]]]:
    """The transcripts of a process that has loaded nothing but saved folders."""
    with answering(ELSEWHERE) as ask:
        yield ask


@pytest.fixture(scope="session")
def round_trip(transcribed_elsewhere: Callable) -> Callable[[Path, Path, Path], Report]:
    """Quantize, save, load, compare, transcribe, load in another process."""

    def check(source: Path, manifest: Path, out: Path) -> Report:
        recognizer = tarq.load_recognizer(source)
        report = tarq.quantize(recognizer, manifest, replace(CONFIG, samples=3))
        tarq.save(recognizer, out, report)

        # every Linear of the model is packed, or named with a reason; so is every pointwise convolution
        packed = {n for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}
        plain = {n for n, m in recognizer.model.named_modules() if isinstance(m, nn.Linear)}
        pointwise = {
            n
            for n, m in recognizer.model.named_modules()
            if isinstance(m, nn.Conv1d | nn.Conv2d) and set(m.kernel_size) == {1} and m.groups == 1
        }
        assert packed == {r.name for r in report.layers if not r.skipped}
        skipped = {r.name for r in report.layers if r.skipped}
        assert plain | pointwise == report.left_out.keys() | skipped
        assert all(report.left_out.values())
        assert all(r.positions > 0 for r in report.layers if not r.skipped)
        ignore = recognizer.model.config.quantization_config["ignore"]
        assert plain == {n for n in plain | packed if any(names_layer(pattern, n) for pattern in ignore)}

        # and the configuration names them as the files do, too
        tensors = load_file(out / "model.safetensors")
        stored = {key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")}
        assert len(stored) == len(packed)
        groups = recognizer.model.config.quantization_config["config_groups"].values()
        named = [target for group in groups for target in group["targets"] if target != "Linear"]
        assert all(any(names_layer(target, n) for n in stored) for target in named)
        assert not any(names_layer(pattern, n) for pattern in ignore for n in stored)

        again = tarq.load_recognizer(out)
        utterances = load_utterances(manifest)[:3]
        batch = recognizer.collate(make_examples(recognizer, utterances, Rarity(Words()), Reporter()).examples[:1])
        with torch.no_grad():
            before, after = recognizer.logits(batch), again.logits(batch)
        assert torch.isfinite(before).all()
        assert before.shape[:2] == batch.targets.shape
        torch.testing.assert_close(after, before)
        audio = [u.audio for u in utterances]
        assert tarq.transcribe(again, audio) == tarq.transcribe(recognizer, audio, batch_size=1)

        found = transcribed_elsewhere(folder=str(out), audio=[str(audio[0])])
        assert found == tarq.transcribe(recognizer, audio[:1])

        # in half precision, what is computed and not stored (rotary frequencies, say) stays as exact as in the original
        full, small = (dict(tarq.load(f, dtype=torch.bfloat16).named_buffers()) for f in (source, out))
        shared = full.keys() & small.keys()
        assert {n: small[n].dtype for n in shared} == {n: full[n].dtype for n in shared}

        # plain transformers finds the packed checkpoint too, and no weight it does not know
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file's configuration is used, not the argument's
            plain_model, info = type(again.model).from_pretrained(
                out,
                dtype=torch.float32,
                output_loading_info=True,
                quantization_config=CompressedTensorsConfig(dequantize=True),
            )
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        with torch.no_grad():
            theirs = type(again)(
                plain_model.eval(), again.tokenizer, again.feature_extractor, torch.float32, again.processor
            ).logits(batch)
        torch.testing.assert_close(theirs, before, rtol=1e-2, atol=1e-2)
        return report

    return check


@pytest.fixture(scope="session")
def same_statistics() -> Callable[[Path, Path], None]:
    """Batch 1 and batch 4 give the same moments of every layer that nothing quantized precedes, to 1e-5."""

    def check(source: Path, manifest: Path) -> None:
        ours, expected = moments(source, manifest, 1), moments(source, manifest, 4)
        assert ours.keys() == expected.keys()
        for label, parts in ours.items():
            for one, four in zip(parts, expected[label], strict=True):
                assert one.positions == four.positions, label
                for subset in ("common", "tail"):
                    difference = (one.hessian[subset] - four.hessian[subset]).norm()
                    assert difference <= 1e-5 * four.hessian[subset].norm() + 1e-12, label

    return check


@pytest.fixture(scope="session")
def audio_language_frame_tags() -> Callable[[Path, Path, int], None]:
    """Rows tagged by what the text listens to: within the audio, alike in every stage, whatever the batch."""

    def check(source: Path, manifest: Path, merged: int) -> None:
        recognizer = tarq.load_recognizer(source)
        examples = make_examples(recognizer, load_utterances(manifest), Rarity(Words()), Reporter()).examples
        together = recognizer.collate(examples)
        with torch.no_grad():
            alone = [recognizer.frame_tags(recognizer.collate([e])) for e in examples]
            tags = recognizer.frame_tags(together)
        assert recognizer.language_model.config._attn_implementation == "sdpa"
        assert tags.keys() == {"encoder", "projector", "decoder"}
        for stage, tail in tags.items():
            rows = together.positions[stage]
            assert not (tail & ~(rows.exists & rows.audio & ~rows.padding)).any()
            assert 0 < tail.sum() < rows.audio.sum()
            for b in range(len(examples)):
                width = alone[b][stage].shape[1]
                assert torch.equal(alone[b][stage][0], tail[b, :width])
                assert not tail[b, width:].any()
            assert not (tail.any(1) & ~together.rare_target.any(1)).any()
        assert torch.equal(tags["projector"].sum(1), tags["decoder"].sum(1))

        # the last rare token is heard in the first third of the audio
        def listened(batch, places):
            scores = []
            for b, place in enumerate(places):
                rare = batch.rare_target[b, batch.targets[b] != -100]
                score = torch.zeros(len(rare), int(place.sum()))
                score[int((~rare).nonzero()[0])] = 1
                score[rare.nonzero().flatten()[-1:], : score.shape[1] // 3] = 2
                scores.append(score)
            return scores

        recognizer._alignment_scores = listened
        placed = recognizer.frame_tags(together)
        for b in together.rare_target.any(1).nonzero().flatten().tolist():
            count = int((together.positions["decoder"].audio & ~together.positions["decoder"].padding)[b].sum())
            wanted = list(range(count // 3))
            first = int(together.positions["decoder"].audio[b].nonzero()[0])
            assert placed["projector"][b].nonzero().flatten().tolist() == wanted
            assert (placed["decoder"][b].nonzero().flatten() - first).tolist() == wanted
            assert placed["encoder"][b].nonzero().flatten().tolist() == list(range(merged * len(wanted)))
        report = tarq.quantize(tarq.load_recognizer(source), manifest, replace(CONFIG, frame_tags="aligned", samples=8))
        assert all(report.calibration["positions"][stage]["tail"] for stage in ("encoder", "projector", "decoder"))

    return check


def moments(source: Path, manifest: Path, batch_size: int) -> dict[str, list[Moments]]:
    """The moments of every group of Linears of the full-precision model, by label."""
    recognizer = tarq.load_recognizer(source)
    config = replace(CONFIG, batch_size=batch_size, residual="none", scale_dtype="float32")
    batches = calibration_set(recognizer, load_utterances(manifest), config, Reporter())[0]
    return gather_moments(recognizer, batches, config)


def tone(seconds: float, pitch: float = 200.0) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    return (0.1 * np.sin(2 * np.pi * pitch * t) * (1 + np.sin(8 * np.pi * t))).astype(np.float32)
