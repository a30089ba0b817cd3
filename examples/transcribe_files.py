"""Deploy a checkpoint: load it packed, see what runs its layers, transcribe files.

Run it: ``python examples/transcribe_files.py [CHECKPOINT AUDIO ...]``; without arguments on the testbed.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import tarq
import tarq.testbed


def main(checkpoint: str, *audio: str) -> None:
    model = tarq.load(checkpoint)  # checksums are checked; weights stay packed in memory
    layers = [module for module in model.modules() if isinstance(module, tarq.QuantLinear)]
    print(f"backends: {dict(Counter(layer.backend for layer in layers))}")
    for file, text in tarq.iter_transcripts(model, audio):  # of a file that cannot be read, the error
        print(f"{Path(str(file)).name}: {text}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if not (given := sys.argv[1:]):
            recognizer = tarq.load_recognizer(tarq.testbed.model())
            tarq.save(recognizer, f"{folder}/w4", tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn")))
            given = [f"{folder}/w4", *(str(u.audio) for u in tarq.testbed.test_set()[:3])]
        main(*given)
