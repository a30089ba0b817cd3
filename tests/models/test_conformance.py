"""What every family must do, against the model's own calls. A family passes by being listed in ``families.py``."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.utils import is_mistral_common_available

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.method.arms import Arms
from tarq.method.awq import AWQ
from tarq.method.rsq import AttentionConcentration
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_example, make_examples
from tarq.walk.folding import fold_input_scales
from tarq.walk.plan import linears_of, plan
from tarq.walk.reparametrize import reparametrize
from tarq.walk.run import gather_moments
from tarq.words.rarity import token_scores, zipf
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import CONFIG, tone
from .families import FAMILIES, make_parakeet, make_wav2vec2, plain_logits, plain_transcript

LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 400)

#: Common words of each script and a rare one at the end; vocabularies of CTC models are made of them.
SCRIPTS = {
    "russian": "это был хороший день в Ыньыкчанском",
    "arabic": "كان يوما جيدا في قسطنطينية",
    "greek": "ήταν μια καλή μέρα στο Κωνσταντινούπολη",
    "chinese": "今天 天气 很 好 饕餮",
    "hindi": "यह एक अच्छा दिन था तिरुवनंतपुरम",
}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda f: f.name)
def family(request):
    if request.param.name == "voxtral" and not is_mistral_common_available():
        pytest.skip("Voxtral's tokenizer needs mistral-common")
    return request.param


@pytest.fixture(scope="module")
def recognizer(family, tmp_path_factory):
    return tarq.load_recognizer(family.make(tmp_path_factory.mktemp("model") / family.name))


@pytest.fixture(scope="module")
def utterances(manifest):
    return load_utterances(manifest)[:3]


@pytest.fixture(scope="module")
def examples(recognizer, utterances):
    return make_examples(recognizer, utterances, Rarity(Words()), Reporter()).examples


def batches_of(recognizer, examples):
    """All in one batch, or each alone where the family does not pad."""
    groups = [examples] if recognizer.pads else [[e] for e in examples]
    with torch.no_grad():
        return [recognizer.collate(group) for group in groups]


def decoder_prompt(recognizer, family, wave):
    """The ids that the model's own ``generate`` first feeds its decoder."""
    inputs = family.inputs(recognizer, wave)
    if "input_ids" in inputs:
        return inputs["input_ids"][0].tolist()
    seen = []
    decoder = recognizer.model.model.decoder
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    try:
        recognizer.model.generate(**inputs, max_new_tokens=1)
    finally:
        handle.remove()
    return seen[0][0].tolist()


def test_prompt_is_the_models_own(family, recognizer, utterances, examples):
    named = {u.id: u for u in utterances}
    for example in examples:
        utterance = named[example.id]
        flags = list(example.prompted.is_text)
        if not family.generates:
            assert all(flags)  # CTC has no prompt
            continue
        expected = decoder_prompt(recognizer, family, utterance.waveform())
        assert list(example.prompted.ids[: flags.index(True)]) == expected
        ids = [i for i, text in zip(example.prompted.ids, flags, strict=True) if text]
        assert recognizer.tokenizer.decode(ids).strip() == utterance.text
        assert example.prompted.ids[-1] in np.atleast_1d(recognizer.model.generation_config.eos_token_id)


def test_logits_are_the_models_own_whatever_the_batch(recognizer, examples):
    with torch.no_grad():
        for batch in batches_of(recognizer, examples):
            ours, theirs = recognizer.logits(batch), plain_logits(recognizer, batch)
            torch.testing.assert_close(recognizer.logits(batch, recognizer.encode(batch.features)), ours)
            first, scored = batch.first(), batch.targets[0] != -100
            torch.testing.assert_close(recognizer.logits(first)[0, scored], ours[0, scored], rtol=1e-3, atol=1e-3)
            assert {len(rows.exists) for rows in first.positions.values()} == {1}
            for b, name in enumerate(batch.ids):
                rows = batch.targets[b] != -100
                torch.testing.assert_close(ours[b, rows], theirs[b, rows], rtol=1e-4, atol=1e-4)
                alone = recognizer.collate([next(e for e in examples if e.id == name)])
                single = recognizer.logits(alone)[0, alone.targets[0] != -100]
                torch.testing.assert_close(ours[b, rows], single, rtol=1e-3, atol=1e-3)
                assert torch.equal(batch.targets[b, rows], alone.targets[0, alone.targets[0] != -100])


def test_targets_know_which_word_is_protected(family, recognizer, utterances):
    """In every family: those of the words on the list, however common, and frames aligned to them."""
    listed = [u.text.split()[1] for u in utterances]
    rarity = Rarity(Words(protect=listed))
    made = make_examples(recognizer, utterances, rarity, Reporter())
    for batch in batches_of(recognizer, made.examples):
        for b, name in enumerate(batch.ids):
            text = made.texts[[u.id for u in made.utterances].index(name)]
            marked = batch.targets[b][batch.protected_target[b]].tolist()
            if not family.generates:  # CTC emits a token for several frames, and blanks between
                marked = [i for i, _ in itertools.groupby(marked) if i != recognizer.blank]
            whole = {} if family.generates else {"group_tokens": False}
            found = recognizer.tokenizer.decode(marked, **whole).split()
            wanted = [word for word in text.split() if rarity.protected().marks([word])[0]]
            assert "".join(found).casefold() == "".join(wanted).casefold() != ""
        assert torch.equal(batch.tail_target, batch.rare_target | batch.protected_target)


def test_targets_know_how_frequent_their_word_is(recognizer, utterances, examples):
    """Rare ones are those below the threshold; all scores are of words of the transcript, each of which has some."""
    texts = {u.id: u.text for u in utterances}
    normalizer = CONFIG.text_normalizer(recognizer.spelling)
    for batch in batches_of(recognizer, examples):
        assert torch.equal(batch.target_zipf < CONFIG.tail_threshold, batch.rare_target)
        assert batch.target_zipf[batch.targets == -100].isnan().all()
        for b, name in enumerate(batch.ids):
            known = batch.target_zipf[b, batch.targets[b] != -100]
            assert set(known[~known.isnan()].tolist()) == set(map(zipf, normalizer.words(texts[name])))


def test_stages_make_up_the_model(recognizer, examples):
    """Each stage starts from what the one before finished with; the last one's states give the model's logits."""
    (first, *_) = batches_of(recognizer, examples)
    handed = None
    with torch.no_grad():
        for stage in recognizer.stages():
            assert stage.name in first.positions
            out = []
            _, last = stage.blocks[-1]
            handle = last.register_forward_hook(lambda _, args, output, out=out: out.append(output))
            try:
                stage.start(first, handed)
            finally:
                handle.remove()
            hidden = out[0][0] if isinstance(out[0], tuple) else out[0]
            handed = stage.finish(hidden)
        head = recognizer.model.get_output_embeddings() or getattr(recognizer.model, "lm_head", None)
        head = head or recognizer.model.ctc_head
        of_frames = type(head) is nn.Conv1d  # newer ones turn their input themselves
        logits = head(handed.transpose(1, 2)).transpose(1, 2) if of_frames else head(handed)
        if first.scored is not None:
            logits = logits.gather(1, first.scored[..., None].expand(-1, -1, logits.shape[-1]))
        valid = first.targets != -100
        torch.testing.assert_close(logits[valid], recognizer.logits(first)[valid], rtol=1e-4, atol=1e-4)


def test_the_walk_feeds_each_block_what_the_model_does(family, utterances, tmp_path, walk_hidden_states):
    """Behind every block, on both paths, of utterances of unlike length in batches of unlike size."""
    recognizer = tarq.load_recognizer(family.make(tmp_path / "m"))
    config = replace(CONFIG, samples=3, batch_size=2, scale_dtype="float32")
    short = [replace(u, text="the house") for u in utterances]  # or the frames of CTC are too few
    batches = calibration_set(recognizer, short, config, Reporter())[0]
    assert len(batches) == (2 if recognizer.pads else 3)
    walk_hidden_states(recognizer, batches, config)


def test_what_is_called_free_of_shifts_is(recognizer, examples):
    """One vector added to all outputs of such a Linear changes nothing; a residual may count on it."""
    (batch, *_) = batches_of(recognizer, examples)
    named = [(n, m) for stage in recognizer.stages() for block, b in stage.blocks for n, m in linears_of(block, b)]
    free = [(name, module) for name, module in named if name.endswith(recognizer.shift_free)]
    assert bool(free) == bool(recognizer.shift_free)

    def shifted(module, args, output):
        return output + torch.linspace(-3, 3, output.shape[-1])

    with torch.no_grad():
        before = recognizer.logits(batch)
        for _, module in free:
            handle = module.register_forward_hook(shifted)
            torch.testing.assert_close(recognizer.logits(batch), before, rtol=1e-3, atol=1e-3)
            handle.remove()


def test_two_layers_of_each_kind(recognizer):
    kinds = set()
    for stage in recognizer.stages():
        assert len(stage.blocks) >= 2 or stage.name == "projector"
        for _, block in stage.blocks:
            kinds.add((stage.name, getattr(getattr(block, "self_attn", None), "sliding_window", None)))
    text = recognizer.model.config.get_text_config(decoder=True)
    if getattr(text, "layer_types", None) and getattr(text, "sliding_window", None):
        assert set(text.layer_types) == {"full_attention", "sliding_attention"}
        assert len({window for stage, window in kinds if stage == "decoder"}) == 2


def plain_options(family, recognizer, wave):
    """Moonshine's authors bound the length of a transcript by that of the audio, in code and in no file."""
    if family.name != "moonshine":
        return {}
    features = recognizer.stack([recognizer.audio_inputs(wave)[0]])
    with torch.no_grad():
        return {"max_new_tokens": recognizer.most_tokens(recognizer.encode(features), 1)}


def test_transcripts_are_the_models_own_whatever_the_batch(family, recognizer, utterances):
    waves = [u.waveform() for u in utterances]
    expected = [plain_transcript(family, recognizer, w, **plain_options(family, recognizer, w)) for w in waves]
    with torch.no_grad():
        assert recognizer.transcribe(waves) == expected
        assert [recognizer.transcribe([w])[0] for w in waves] == expected
    assert len(set(expected)) > 1
    assert all(expected)


def test_a_batch_that_was_teacher_forced_decodes_to_the_same(recognizer, utterances):
    """Forced along its own transcript, along another's, and along a wrong one: the transcript is the greedy one."""
    waves = [u.waveform() for u in utterances]
    with torch.no_grad():
        own = recognizer.transcribe(waves)
        for texts in (own, own[1:] + own[:1], ["the house"] * 3):
            made = [
                make_example(recognizer, str(i), wave, text, Rarity(Words()), "en")
                for i, (wave, text) in enumerate(zip(waves, texts, strict=True))
            ]
            made = [e for e in made if not recognizer.reason_to_skip(e)]
            for batch in batches_of(recognizer, made) if made else []:
                audio = recognizer.encode(batch.features)
                decoded = recognizer.decode_forced(batch, audio, recognizer.logits(batch, audio))
                assert decoded == [own[int(i)] for i in batch.ids]


@pytest.mark.parametrize("count", LENGTHS)
def test_transcripts_of_any_length(recognizer, count):
    """Targets spell the transcript, and its logits are numbers."""
    texts = [" ".join(["A" if recognizer.frames_only else "a"] * n) for n in range(1, count + 1)]
    text = texts[bisect_left(texts, count, key=lambda text: len(recognizer.tokens(text)[0]))]
    ids = recognizer.tokens(text)[0]
    wave = tone(min(recognizer.window, 0.06 * len(ids) + 1)) if recognizer.frames_only else tone(1.5)
    example = make_example(recognizer, "x", wave, text, Rarity(Words()), "en")
    assert not recognizer.reason_to_skip(example)
    with torch.no_grad():
        batch = recognizer.collate([example])
        logits = recognizer.logits(batch)
    targets = batch.targets[0, batch.targets[0] != -100].tolist()
    if recognizer.frames_only:
        assert [k for k, _ in itertools.groupby(targets) if k != recognizer.blank] == ids
    else:
        assert targets[:-1] == ids
    assert torch.isfinite(logits[0, batch.targets[0] != -100]).all()


def test_transcripts_beyond_the_model_are_left_out_with_the_reason(recognizer):
    text = ("A B " if recognizer.frames_only else "a b ") * 600
    example = make_example(recognizer, "x", tone(1.0), text, Rarity(Words()), "en")
    assert "frames" in recognizer.reason_to_skip(example) or "decoder takes" in recognizer.reason_to_skip(example)


@pytest.mark.parametrize("script", SCRIPTS)
def test_vocabularies_of_other_scripts(family, recognizer, script, tmp_path):
    """Tokens of a text say which characters they stand for, and decode to it; the rare word's alone are tagged."""
    text = SCRIPTS[script]
    if family.name in ("wav2vec2", "hubert"):
        letters = sorted({c for c in text if not c.isspace()})
        recognizer = tarq.load_recognizer(make_wav2vec2(tmp_path / "m", letters=letters))
    if family.name == "parakeet":
        recognizer = tarq.load_recognizer(make_parakeet(tmp_path / "m", [text]))
    ids, spans = recognizer.tokens(text)
    covered = {c for span in spans for c in range(*span)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered
    decode = {"group_tokens": False} if recognizer.frames_only else {}
    assert recognizer.tokenizer.decode(ids, **decode).strip() == text
    # what is tagged covers the rare word's characters, the last one's of each text, and no other word's
    word = range(text.rindex(" ") + 1, len(text))
    scores = token_scores(spans, [((word.start, word.stop), 0.0)])
    tagged = {c for span, score in zip(spans, scores, strict=True) if score < 3 for c in range(*span)}
    assert set(word) <= tagged <= {word.start - 1, *word}


def test_silence_and_the_shortest_audio(recognizer):
    with torch.no_grad():
        texts = recognizer.transcribe([np.zeros(0, np.float32), np.zeros(160, np.float32), tone(0.05)])
    assert len(texts) == 3


def test_a_model_that_computes_nan_says_so(family, tmp_path):
    recognizer = tarq.load_recognizer(family.make(tmp_path / "m"))
    stage = recognizer.stages()[-1]
    with torch.no_grad():
        for parameter in stage.blocks[-1][1].parameters():
            parameter.fill_(float("nan"))
        with pytest.raises(tarq.ModelError, match="NaN or infinity"):
            recognizer.transcribe([tone(1.0)])


def test_checks_need_no_audio(recognizer, monkeypatch):
    monkeypatch.setattr(type(recognizer), "audio_inputs", None)
    assert recognizer.check() == []
    assert max(recognizer.tokens("A a")[0]) < len(recognizer.vocabulary)


def test_a_feature_extractor_of_another_model_is_refused(recognizer, monkeypatch):
    monkeypatch.setattr(recognizer.feature_extractor, "feature_size", 3)
    with pytest.raises(tarq.ModelError, match=r"makes 3 mel bins .*the model reads \d+"):
        recognizer.check()


def test_linears_of_blocks_with_attention_hear_how_much_their_rows_are_given(family, recognizer, examples):
    """In each family; but for projectors, relative positions, and Qwen3-ASR's tower, which keeps its weights."""

    class Hears(AttentionConcentration):
        def reassign(self, rows):
            heard.setdefault(rows.layers[0], []).append(rows.attention)
            return super().reassign(rows)

    heard = {}
    batches = batches_of(recognizer, examples)
    config = replace(CONFIG, residual="none")
    found = gather_moments(recognizer, batches, config, Arms.of(config.to_dict(), metric=Hears()))
    assert {name.partition("|")[0] for name in found} == set(heard)
    for name, given in heard.items():
        if re.search(r"projector|relative_k_proj", name) or (family.name, "tower" in name) == ("qwen3_asr", True):
            assert given == [None] * len(batches)
        else:
            assert all(bool((g >= 0).all()) and float(g.max()) > 0 for g in given), name


def test_scales_of_inputs_leave_what_a_family_computes_as_it_is(family, examples, tmp_path):
    """Whatever its blocks are made of: where something in front can take the scales, and where nothing can."""
    scaled = tarq.load_recognizer(family.make(tmp_path / "model"))
    batches = batches_of(scaled, examples)
    before = {name: parameter.clone() for name, parameter in scaled.model.named_parameters()}
    with torch.no_grad():
        expected = [scaled.logits(batch) for batch in batches]
    config = replace(CONFIG, scale_rule="absmax")  # what the search costs, the scales' rule multiplies
    notes = fold_input_scales(scaled, batches, config, Reporter(), scaled.device, AWQ())
    assert any(note.startswith("its input is scaled by") for note in notes.values())
    assert any(not torch.allclose(p, before[name], rtol=1e-2) for name, p in scaled.model.named_parameters())
    with torch.no_grad():
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(scaled.logits(batch), logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def test_other_weights_of_a_family_compute_the_same(family, examples, tmp_path):
    """Values can be rotated and hidden units sorted in every family; queries and keys where nothing is between them."""
    changed = tarq.load_recognizer(family.make(tmp_path / "model"))
    batches = batches_of(changed, examples)
    with torch.no_grad():
        expected = [changed.logits(batch) for batch in batches]
    layers = [layer.name for layer in plan(changed, CONFIG) if layer.group_size]
    notes = reparametrize(changed, batches[0], ["heads", "hidden"], layers, Reporter(), changed.device)
    values = {name for name in layers if name.endswith("v_proj")}
    assert values
    assert values <= set(notes)
    assert "hidden units are sorted" in notes.values()
    with torch.no_grad():
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(changed.logits(batch), logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def test_a_stopped_run_goes_on_to_the_same_result(family, utterances, tmp_path):
    """Stopped in the last block: all others are taken from the folder, with what later ones read of them."""
    source = family.make(tmp_path / "model")
    speech = [replace(u, text="the house") for u in utterances]  # or the frames of CTC are too few
    config = replace(CONFIG, samples=3)

    def quantized(reporter=None, resume=tmp_path / "run"):
        recognizer = tarq.load_recognizer(source)
        report = tarq.quantize(recognizer, speech, config, reporter=reporter, resume=resume)
        return recognizer, report

    class Stops(Reporter):
        def layer(self, record):
            if record.name.startswith(f"{last}."):
                raise KeyboardInterrupt

    whole, expected = quantized(resume=None)
    blocks = [name for stage in whole.stages() for name, _ in stage.blocks]
    last = blocks[-1]
    with pytest.raises(KeyboardInterrupt):
        quantized(Stops())
    assert len(list((tmp_path / "run").glob("[0-9]*"))) == len(blocks) - 1
    resumed, report = quantized()
    state = resumed.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert report.layers == expected.layers
    assert report.notes == expected.notes
