"""What the tests of the walk share."""

import pytest

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set


@pytest.fixture
def recognizer(model_folder):
    return tarq.load_recognizer(model_folder)


@pytest.fixture
def batches(request, recognizer, manifest):
    """The calibration set of a module's ``CONFIG``."""
    return calibration_set(recognizer, load_utterances(manifest), request.module.CONFIG, Reporter())[0]
