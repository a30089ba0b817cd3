"""The whole job on a real Whisper body and real speech, where they lie beside the repository."""

import pytest

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.data.sampling import select_utterances
from tarq.linear import QuantLinear
from tarq.scoring.words import score_words
from tarq.words.normalize import get_normalizer
from tarq.words.rarity import rare_counts

pytestmark = [pytest.mark.assets, pytest.mark.slow]


@pytest.fixture(scope="module")
def speech(assets):
    pool = load_utterances(assets / "speech" / "librispeech_train")
    unseen = select_utterances(pool, ["in_training=false"])
    with_rare_words = [u for u in unseen if rare_counts(u.text or "", get_normalizer("english"))[1]]
    return sorted(with_rare_words, key=lambda u: u.seconds())[:4]


def test_quantize_save_load_transcribe(assets, speech, tmp_path):
    source = assets / "whisper-tiny-relearned"
    recognizer = tarq.load_recognizer(source)
    report = tarq.quantize(recognizer, speech, tarq.TarqConfig.preset("tarq", samples=4))
    tarq.save(recognizer, tmp_path / "out", report)

    assert {r.group_size for r in report.layers} == {128}
    assert report.calibration["transcript_style"] == "lower case"
    decoder = [r for r in report.layers if r.name.endswith("decoder.layers.3.fc1")]
    assert decoder[0].tail_positions > 0
    assert decoder[0].lam > 1
    packed = [m for m in tarq.load(tmp_path / "out").modules() if isinstance(m, QuantLinear)]
    assert len(packed) == 64
    dense = sum(2 * m.in_features * m.out_features for m in packed)
    assert sum(m.packed_bytes() for m in packed) < 0.30 * dense

    texts = tarq.transcribe(tmp_path / "out", [u.audio for u in speech])
    scores = score_words([u.text for u in speech], texts, normalizer=get_normalizer("english"))
    assert scores.wer < 0.5  # full precision is near 0.11 on this set; random weights would be above 1
