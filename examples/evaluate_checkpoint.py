"""Evaluate a checkpoint against its full-precision model and read the scores: values, differences, words lost.

Run it: ``python examples/evaluate_checkpoint.py [MODEL CHECKPOINT SPEECH]``; without arguments on the testbed.
"""

import sys
import tempfile

import tarq
import tarq.testbed


def main(model: str, checkpoint: str, speech: object) -> None:
    models = {"full": model, "w4": checkpoint}
    result = tarq.evaluate(models, {"test": speech}, reference="full", samples=24, resamples=500).sets["test"]
    print(f"{result.utterances} utterances, {result.rare_words} rare words of {result.words}")
    scores = result.models["w4"]
    for name in ("delta_nll_rare", "kl_rare", "delta_nll_common", "kl_common"):  # damage, in nats per token
        known = scores.figures[name]
        print(f"{name}: {known.value:+.4f} [{known.low:+.4f}, {known.high:+.4f}]")
    gap = result.differences["w4 − full"]["rare_wer"]  # paired; a difference is clear if its interval excludes 0
    print(f"rare-word errors: {100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]")
    print(f"rare words lost: {', '.join(sorted({change.word for change in scores.lost})) or 'none'}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if not (given := sys.argv[1:]):
            recognizer = tarq.load_recognizer(tarq.testbed.model())
            report = tarq.quantize(recognizer, tarq.testbed.calibration_pool(), tarq.TarqConfig(samples=8))
            tarq.save(recognizer, f"{folder}/w4", report)
            given = [str(tarq.testbed.model()), f"{folder}/w4", tarq.testbed.test_set()]
        main(*given)
