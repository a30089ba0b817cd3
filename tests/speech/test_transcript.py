"""Formats of transcripts, as their readers take them."""

from __future__ import annotations

import json

import pytest

import tarq
from tarq.models.types import Segment, Word
from tarq.speech.transcript import transcript_of, within

SEGMENTS = (
    Segment(0.0, 1.5, "Say <b> & go --> there"),
    Segment(3661.0004, 3725.9996, "two\n\nlines\tand a tab"),
    Segment(360_000.0, 360_000.25, "naïve 日本"),
)


def made(*segments: Segment) -> tarq.Transcript:
    return tarq.Transcript("all of it", segments or SEGMENTS, "en")


def test_srt():
    """Commas, numbers from 1, an empty line between; no arrow and no empty line within a text."""
    assert made().formatted("srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nSay <b> & go -> there\n\n"
        "2\n01:01:01,000 --> 01:02:06,000\ntwo lines and a tab\n\n"
        "3\n100:00:00,000 --> 100:00:00,250\nnaïve 日本\n\n"
    )


def test_vtt():
    """A header, points, and what would be markup escaped."""
    assert made().formatted("vtt") == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.500\nSay &lt;b&gt; &amp; go --&gt; there\n\n"
        "01:01:01.000 --> 01:02:06.000\ntwo lines and a tab\n\n"
        "100:00:00.000 --> 100:00:00.250\nnaïve 日本\n\n"
    )


def test_vtt_has_a_place_for_the_times_of_words():
    words = (Word(0.0, 0.5, "R&D"), Word(0.5, 1.25, "now"))
    content = made(Segment(0.0, 1.5, "R&D now", words)).formatted("vtt")
    assert content.splitlines()[3] == "<00:00:00.000>R&amp;D <00:00:00.500>now"


def test_tsv_is_in_milliseconds():
    assert made().formatted("tsv") == (
        "start\tend\ttext\n0\t1500\tSay <b> & go --> there\n3661000\t3726000\ttwo lines and a tab\n"
        "360000000\t360000250\tnaïve 日本\n"
    )


def test_json_has_words_only_where_they_were_asked_for():
    words = (Word(0.0, 0.5, "a"),)
    content = json.loads(made(Segment(0.0, 1.0, "a", words), Segment(1.0, 2.0, "b")).formatted("json"))
    assert content == {
        "text": "all of it",
        "language": "en",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": "a", "words": [{"start": 0.0, "end": 0.5, "text": "a"}]},
            {"start": 1.0, "end": 2.0, "text": "b"},
        ],
    }


def test_text_and_what_is_no_format():
    assert made().formatted("text") == "all of it\n"
    with pytest.raises(KeyError):
        made().formatted("pdf")


@pytest.mark.parametrize("kind", ["srt", "vtt", "tsv"])
def test_silence_is_a_file_without_cues(kind):
    assert tarq.Transcript("").formatted(kind) == {"srt": "", "vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}[kind]


def test_segments_become_a_transcript():
    """Joined by the spaces that the model wrote; without those in which nothing was said."""
    raw = [Segment(0, 1, " One,"), Segment(1, 2, "  "), Segment(2, 3, " two"), Segment(3, 4, "三 ")]
    found = transcript_of(raw, "en")
    assert found.text == "One, two三"
    assert [segment.text for segment in found.segments] == ["One,", "two", "三"]


def test_no_time_lies_beyond_the_recording():
    segment = within(Segment(1.0004, 30.0, "a", (Word(1.0, 1.2, "b"), Word(5.0, 6.0, "c"))), 4.5)
    assert segment == Segment(1.0, 4.5, "a", (Word(1.0, 1.2, "b"), Word(4.5, 4.5, "c")))
