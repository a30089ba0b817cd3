"""The normaliser of other languages: words of every script stay whole, and what is counted follows."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarq.config import TarqConfig
from tarq.errors import DataError
from tarq.scoring.words import score_words
from tarq.words.frequencies import described, load_frequencies
from tarq.words.normalize import get_normalizer
from tarq.words.rarity import is_rare, rare_counts, word_spans, zipf
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

BASIC = get_normalizer("basic")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Hindi: vowel signs (Mc), virama and anusvara (Mn)
        ("हिन्दी में प्राचीन संस्कृतियों की कहानी।", ["हिन्दी", "में", "प्राचीन", "संस्कृतियों", "की", "कहानी"]),
        # Tamil, Malayalam, Bengali
        ("வணக்கம், எப்படி இருக்கிறீர்கள்?", ["வணக்கம்", "எப்படி", "இருக்கிறீர்கள்"]),
        ("സ്ഥിതിഗതികൾ നേരെയാക്കുന്നതിന്", ["സ്ഥിതിഗതികൾ", "നേരെയാക്കുന്നതിന്"]),
        ("আমি বাংলায় গান গাই", [unicodedata.normalize("NFC", w) for w in ("আমি", "বাংলায়", "গান", "গাই")]),
        # Thai is written without spaces: its words stay as they are written
        ("สวัสดีครับ ผมชื่อ", ["สวัสดีครับ", "ผมชื่อ"]),
        ("東京に行きます。", ["東京に行きます"]),
        ("我喜歡聽音樂，你呢？", ["我喜歡聽音樂", "你呢"]),
        # Arabic: short vowels are left out, as most writers do; hamza and madda make other letters
        ("مُحَمَّدٌ رَسُولٌ", ["محمد", "رسول"]),
        ("الْقُرْآنُ، سُؤَالٌ", ["القرآن", "سؤال"]),
        ("كـــتاب", ["كتاب"]),
        ("آ أ", ["آ", "أ"]),  # composed, whichever way they come
        # Hebrew: points and accents are left out, maqaf divides
        ("שָׁלוֹם עֲלֵיכֶם", ["שלום", "עליכם"]),
        ("בֵּית־סֵפֶר", ["בית", "ספר"]),
        # Turkish
        ("İstanbul'da", ["istanbul", "da"]),
        # Latin with marks that have no composed form, and those that have
        ("Ṣọ̀rọ̀ Zoë ĝis", ["ṣọ̀rọ̀", "zoë", "ĝis"]),
        ("Cafe\u0301", ["café"]),
        # Persian's joint (ZWNJ) is within a word; marks of direction and variation are nothing
        ("می\u200cخواهم\u200f", ["می\u200cخواهم"]),
        ("I \u2764\ufe0f you \u0301 1\u20e3", ["i", "you", "1"]),
        ("ខ្ញុំ\u200bទៅ", ["ខ្ញុំ", "ទៅ"]),
        # as Whisper's own
        ("[Musik] das (lacht) Häuschen, 3,5 €!", ["das", "häuschen", "3", "5"]),
    ],
)
def test_words_stay_whole(text, words):
    assert BASIC.words(text) == words
    for form in ("NFC", "NFD"):
        assert BASIC.words(unicodedata.normalize(form, text)) == words


def test_turkish_has_a_lower_case_of_its_own():
    assert get_normalizer("basic", language="tr").words("ISPARTA'DA İNCİ I\u0307nci") == [
        "ısparta",
        "da",
        "inci",
        "inci",
    ]
    assert get_normalizer("basic", language="az-Latn").words("I") == ["ı"]
    assert BASIC.words("ISPARTA İNCİ") == ["isparta", "inci"]
    for language in ("tr", "tr-TR", "tr_TR", "AZ"):
        assert Words(language=language).text_normalizer().words("ISI") == ["ısı"]
    assert get_normalizer("basic", language="tr").name == "basic"


def test_it_is_whispers_where_there_are_no_marks():
    whisper = pytest.importorskip("transformers.models.whisper.english_normalizer").BasicTextNormalizer()
    for text in (
        "Mr. O'Brien's £3,500 — well-known",
        "¿Qué? ¡No! [ruido] (risas) Œuvre № 5",
        "Привет, мир; ёлка",
        "½ ﬁn",
    ):
        assert BASIC.words(text) == whisper(text).split()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_normalised_is_normalised(text):
    once = BASIC(text)
    assert all(any(map(str.isalnum, word)) or word for word in once.split())
    assert BASIC(once) == once
    assert unicodedata.is_normalized("NFC", once)


# --- what follows from it ---

HINDI = "मैं कल दिल्ली से मुंबई जाने वाली गाड़ी में था"
HEARD = "मैं कल दिल्लीं से मुंबइ जाना वाला गाड़ी मे था"


def test_word_errors_of_hindi():
    """Ten words, five of them wrong by one sign each; cut at the signs they were 16 with 2 errors."""
    scores = score_words([HINDI], [HEARD], normalizer=BASIC, language="hi")
    assert scores.plain.words.tolist() == [10]
    assert scores.wer == 0.5


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "words", "errors"),
    [
        ("ta", "நான் நாளை சென்னைக்கு வருகிறேன்", "நான் நாளை சென்னைக்க வருகிறேன்", 4, 1),
        ("ar", "ذَهَبَ الوَلَدُ إِلَى المَدْرَسَةِ", "ذهب الولد إلى المدينة", 4, 1),
        ("he", "הַיֶּלֶד הָלַךְ לְבֵית הַסֵּפֶר", "הילד הלך לבית הספר", 4, 0),
        ("tr", "İstanbul ISPARTA kadar sıcak", "istanbul ısparta kadar sıcak", 4, 0),
    ],
)
def test_word_errors_of_other_scripts(language, reference, hypothesis, words, errors):
    normalizer = TarqConfig(language=language).text_normalizer()
    scores = score_words([reference], [hypothesis], normalizer=normalizer, language=language)
    assert scores.plain.words.tolist() == [words]
    assert scores.plain.errors.tolist() == [errors]


def test_rare_words_of_hindi():
    text = "वह ऑक्सीटोसिनयुक्त दवा लेता है"
    assert rare_counts(text, BASIC, language="hi") == (5, 1)
    ((start, end),) = (span for span, score in word_spans(text, BASIC, language="hi") if score < 3)
    assert text[start:end] == "ऑक्सीटोसिनयुक्त"
    # A word that ends in a sign is tagged with its sign.
    (((start, end), score),) = word_spans("क़ज़्ज़ाक़ी!", BASIC, language="hi")
    assert score < 3
    assert "क़ज़्ज़ाक़ी!"[start:end] == "क़ज़्ज़ाक़ी"
    assert Rarity(Words(language="hi")).counts(text) == (5, 1)
    assert not is_rare("विश्वविद्यालय", language="hi")


def test_counts_of_ones_own_go_by_whole_words(tmp_path):
    path = tmp_path / "counts.txt"
    path.write_text("की\t900\nक\t1\nמִלָּה\t50\nİnci\t7\nم\u064f\u062d\t3\n", encoding="utf-8")
    own = load_frequencies(path)
    assert zipf("की", own) > zipf("क", own) > 0
    assert zipf("«की»", own) == zipf("की", own)
    assert zipf("מלה", own) > 0
    assert zipf("inci", own) > 0
    assert zipf("مح", own) > 0
    text = "की क"
    assert rare_counts(text, BASIC, threshold=7.0, language=own) == (2, 1)


@pytest.mark.parametrize("language", ["zh", "ja", "th"])
def test_languages_without_spaces_are_refused(language):
    with pytest.raises(DataError, match=r"without spaces|no word frequencies"):
        is_rare("東京", language=language)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(threshold):
    with pytest.raises(DataError, match=r"tail_threshold\) is (nan|inf): give a finite Zipf score"):
        described("en", threshold)


def test_a_transcript_is_normalised_once(monkeypatch):
    rarity = Rarity(Words())
    calls = []
    monkeypatch.setattr("tarq.words.transcripts.rare_counts", lambda *a: calls.append(a) or (3, 1))
    for _ in range(3):
        assert rarity.counts("one two three") == (3, 1)
    assert len(calls) == 1
