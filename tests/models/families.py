"""Every family as a tiny random model on disk, and how a user of plain transformers calls it.

A family passes the conformance suite (``test_conformance.py``) by being listed in :data:`FAMILIES`. Models have two
layers of each kind their configurations allow.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    HubertForCTC,
    LlamaConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetTokenizer,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen3ASRConfig,
    Qwen3ASREncoderConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Qwen3Config,
    VoxtralConfig,
    VoxtralEncoderConfig,
    VoxtralForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tarq.models.base import Recognizer
from tarq.models.types import Batch

#: What tokenizers are trained on: common words, so that rare ones fall into several pieces.
TEXT = [
    "the committee met in the old town on the ninth of March",
    "she sells the house by the river and it was a very good day for all of us",
    "they will come back next year at half past six",
]


def byte_level_tokenizer(special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with special tokens at its first ids."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **roles)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights large enough that what a model computes depends on what it hears."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d) and "weight" in module._parameters:
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan_in**0.5)
    return model


LANGUAGES = ["<|en|>", "<|de|>"]
TASKS = ["<|transcribe|>", "<|translate|>"]
START = ["<|endoftext|>", "<|startoftranscript|>"]
TIMES = [f"<|{i * 0.02:.2f}|>" for i in range(101)]  # a window of 2 s


def make_whisper(path, *, mel=80, encoder=2, decoder=2, multilingual=True, times=True, positions=448):
    """Special tokens in the order of the hub's: languages, tasks, no-timestamps, then every time."""
    special = [*START, *(LANGUAGES + TASKS if multilingual else []), "<|notimestamps|>"]
    tokenizer = byte_level_tokenizer(special, eos_token=START[0], bos_token=START[0], pad_token=START[0])
    plain = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    if times:  # at the end of the vocabulary, after no-timestamps as in the hub's
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|plain|>", *TIMES]})
        plain = tokenizer.convert_tokens_to_ids("<|plain|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=64, encoder_layers=encoder, decoder_layers=decoder,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=96, decoder_ffn_dim=96,
        max_source_positions=100, max_target_positions=positions, num_mel_bins=mel, decoder_start_token_id=1,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = lively(WhisperForConditionalGeneration(config))
    generation = model.generation_config
    generation._from_model_config = False
    generation.no_timestamps_token_id, generation.is_multilingual, generation.max_length = plain, multilingual, 40
    if multilingual:
        generation.lang_to_id = {t: tokenizer.convert_tokens_to_ids(t) for t in LANGUAGES}
        generation.task_to_id = {t.strip("<|>"): tokenizer.convert_tokens_to_ids(t) for t in TASKS}
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=mel, chunk_length=2).save_pretrained(path)
    return path


def make_moonshine(path):
    """Moonshine tiny's width, 288, and its head dimension of 36."""
    tokenizer = byte_level_tokenizer(["<unk>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = MoonshineConfig(
        vocab_size=len(tokenizer), hidden_size=288, intermediate_size=384, encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2, max_position_embeddings=448, pad_head_dim_to_multiple_of=8,
    )  # fmt: skip
    lively(MoonshineForConditionalGeneration(config)).half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(path)
    return path


STEM = {"conv_dim": (32, 32, 32), "conv_kernel": (20, 8, 4), "conv_stride": (10, 8, 4)}
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"


def character_tokenizer(path, letters=LETTERS):
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(vocabulary)}))
    return Wav2Vec2CTCTokenizer(path / "vocab.json")


def make_wav2vec2(path, config_class=Wav2Vec2Config, model_class=Wav2Vec2ForCTC, norm="layer", letters=LETTERS):
    """``layer``: the large models, padded and masked; ``group``: the base ones, never padded."""
    tokenizer = character_tokenizer(path, letters)
    config = config_class(
        vocab_size=len(tokenizer), pad_token_id=0, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, **STEM, **SIZE,
    )  # fmt: skip
    lively(model_class(config)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(path)
    return path


def make_hubert(path):
    return make_wav2vec2(path, HubertConfig, HubertForCTC, "group")


def make_parakeet(path, text=TEXT):
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.train_from_iterator(text, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"]))
    tokenizer = ParakeetTokenizer(tokenizer_object=pieces, unk_token="<unk>", pad_token="<pad>")
    encoder = ParakeetEncoderConfig(
        conv_kernel_size=5,
        subsampling_factor=4,
        subsampling_conv_channels=16,
        num_mel_bins=80,
        max_position_embeddings=500,
        **SIZE,
    )
    config = ParakeetCTCConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, encoder_config=encoder.to_dict()
    )
    lively(ParakeetForCTC(config)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    ParakeetFeatureExtractor(feature_size=80, hop_length=80).save_pretrained(path)
    return path


QWEN2_SPECIAL = ["<|endoftext|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|en|>"]


def make_qwen2_audio(path):
    """Windows of 2 s; one decoder layer attends to everything, the other to the last 24 positions."""
    tokenizer = byte_level_tokenizer(QWEN2_SPECIAL, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, num_mel_bins=128,
            max_source_positions=100,
        ).to_dict(),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, use_sliding_window=True,
            sliding_window=24, layer_types=["full_attention", "sliding_attention"],
        ).to_dict(),
        audio_token_index=1,
    )  # fmt: skip
    model = lively(Qwen2AudioForConditionalGeneration(config))
    model.generation_config.max_new_tokens, model.generation_config.eos_token_id = 12, 0
    model.save_pretrained(path)
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128, chunk_length=2), tokenizer).save_pretrained(path)
    return path


QWEN3_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<asr_text>",
]  # fmt: skip

#: The turns of Qwen3-ASR's prompt: system (may be empty), audio, and what the assistant is made to begin with.
QWEN3_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{%- for c in m['content'] %}"
    "{%- if c['type'] == 'audio' %}{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}"
    "{%- else %}{{ c['text'] }}{%- endif %}"
    "{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make_qwen3_asr(path):
    """Grouped queries, chunks of 1 s and windows of 2 s; one decoder layer attends to the last 24 positions only."""
    tokenizer = byte_level_tokenizer(
        QWEN3_SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
        },
    )  # fmt: skip
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN3_SPECIAL}
    config = Qwen3ASRConfig(
        audio_config=Qwen3ASREncoderConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, downsample_hidden_size=16,
            output_dim=64, n_window_infer=200,
        ).to_dict(),
        text_config=Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
            use_sliding_window=True, sliding_window=24, layer_types=["full_attention", "sliding_attention"],
            tie_word_embeddings=True,
        ).to_dict(),
        audio_token_id=ids["<|audio_pad|>"], pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|endoftext|>"], ids["<|im_end|>"]],
    )  # fmt: skip
    model = lively(Qwen3ASRForConditionalGeneration(config))
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(path)
    Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=QWEN3_TEMPLATE).save_pretrained(path)
    return path


#: Control tokens with the ids Voxtral's tekken.json gives them.
CONTROL = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 11: "<pad>", 13: "[PREFIX]", 14: "[MIDDLE]",
    15: "[SUFFIX]", 16: "[SYSTEM_PROMPT]", 17: "[/SYSTEM_PROMPT]", 18: "[TOOL_CONTENT]", 24: "[AUDIO]",
    25: "[BEGIN_AUDIO]", 32: "[ARGS]", 33: "[CALL_ID]", 34: "[TRANSCRIBE]",
}  # fmt: skip


def write_tekken(path):
    """All bytes and some pairs of letters, behind forty control tokens."""
    pieces = [bytes([i]) for i in range(256)] + [b"th", b"he", b"the", b" the", b"in", b" h", b"ou", b" r"]
    special = [{"rank": i, "token_str": CONTROL.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(40)]
    tekken = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + len(special),
            "default_num_special_tokens": len(special),
            "version": "v11",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(p).decode(), "token_str": p.decode(errors="replace")}
            for i, p in enumerate(pieces)
        ],
        "special_tokens": special,
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "tekken.json").write_text(json.dumps(tekken))
    return tekken["config"]["default_vocab_size"]


def make_voxtral(path):
    """Grouped queries; frames of 30 s, as the processor makes them."""
    vocabulary = write_tekken(path)
    config = VoxtralConfig(
        audio_config=VoxtralEncoderConfig(
            hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_mel_bins=128
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
            pad_token_id=11,
        ).to_dict(),
        audio_token_id=24,
    )  # fmt: skip
    model = lively(VoxtralForConditionalGeneration(config), seed=5)
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = 2, 12
    model.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps({"processor_class": "VoxtralProcessor"}))
    return path


@dataclass(frozen=True)
class Family:
    """A family for the conformance suite.

    Attributes:
        name: of the test.
        make: writes a tiny model into a folder and returns it.
        inputs: what a user makes of one waveform with the checkpoint's own processor, as arguments of ``forward``
            (a CTC model) or of ``generate``.
        generates: whether it has ``generate`` in transformers' sense; CTC models have only frames.
    """

    name: str
    make: Callable[[Path], Path]
    inputs: Callable[[Recognizer, np.ndarray], dict[str, Any]]
    generates: bool = True


def whisper_inputs(recognizer: Recognizer, wave: np.ndarray) -> dict[str, Any]:
    features = recognizer.feature_extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    return {"input_features": features, "language": "en", "task": "transcribe"}


def moonshine_inputs(recognizer: Recognizer, wave: np.ndarray) -> dict[str, Any]:
    values = recognizer.feature_extractor(wave, sampling_rate=16000, return_tensors="pt").input_values
    return {"input_values": values}


def ctc_inputs(recognizer: Recognizer, wave: np.ndarray) -> dict[str, Any]:
    return dict(recognizer.feature_extractor(wave, sampling_rate=16000, return_tensors="pt"))


def qwen2_audio_inputs(recognizer: Recognizer, wave: np.ndarray) -> dict[str, Any]:
    task = "<|audio_bos|><|AUDIO|><|audio_eos|>Detect the language and recognize the speech: <|en|>"
    return dict(recognizer.processor(text=task, audio=[wave], sampling_rate=16000, return_tensors="pt"))


def qwen3_asr_inputs(recognizer: Recognizer, wave: np.ndarray) -> dict[str, Any]:
    return dict(recognizer.processor.apply_transcription_request(audio=wave, language="en"))


def voxtral_inputs(recognizer: Recognizer, wave: np.ndarray) -> dict[str, Any]:
    made = recognizer.processor.apply_transcription_request(
        audio=[wave], format=["WAV"], sampling_rate=16000, language="en", model_id="voxtral"
    )
    # its processor writes the audio as a file of 16 bits in between
    features = recognizer.feature_extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    return dict(made) | {"input_features": features}


FAMILIES = [
    Family("whisper", make_whisper, whisper_inputs),
    Family("moonshine", make_moonshine, moonshine_inputs),
    Family("wav2vec2", make_wav2vec2, ctc_inputs, generates=False),
    Family("hubert", make_hubert, ctc_inputs, generates=False),
    Family("parakeet", make_parakeet, ctc_inputs, generates=False),
    Family("voxtral", make_voxtral, voxtral_inputs),
    Family("qwen3_asr", make_qwen3_asr, qwen3_asr_inputs),
    Family("qwen2_audio", make_qwen2_audio, qwen2_audio_inputs),
]


def plain_transcript(family: Family, recognizer: Recognizer, wave: np.ndarray, **options: Any) -> str:
    """What the model's own calls transcribe, none of tarq's between."""
    inputs = family.inputs(recognizer, wave)
    with torch.no_grad():
        if family.name in ("wav2vec2", "hubert"):
            # Not skip_special_tokens: it takes blanks out before repeated letters are merged.
            (text,) = recognizer.tokenizer.batch_decode(recognizer.model(**inputs).logits.argmax(-1))
            return text.replace("<s>", "").replace("</s>", "").replace("<unk>", "").strip()
        written = recognizer.model.generate(**inputs, **options)
    start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return recognizer.tokenizer.batch_decode(written[:, start:].tolist(), skip_special_tokens=True)[0].strip()


def plain_logits(recognizer: Recognizer, batch: Batch) -> Tensor:
    """[B, T, vocabulary] of one plain call of the model on a batch, at the rows of ``recognizer.logits``."""
    if "decoder" not in batch.positions:
        return recognizer.model(**batch.features).logits
    if batch.scored is None:
        return recognizer.model(**batch.features, decoder_input_ids=batch.input_ids).logits
    mask = batch.positions["decoder"].exists.long()
    logits = recognizer.model(input_ids=batch.input_ids, attention_mask=mask, **batch.features).logits
    return logits.gather(1, batch.scored[..., None].expand(-1, -1, logits.shape[-1]))
