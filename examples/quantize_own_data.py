"""Quantize a model on speech of one's own: a manifest is written, checked by a dry run, calibrated on, and saved.

Run it: ``python examples/quantize_own_data.py [MODEL OUT]``; without arguments the testbed's recognizer, thrown away.
"""

import json
import sys
import tempfile
from pathlib import Path

import tarq
import tarq.testbed


def main(model: str, out: Path, manifest: Path) -> None:
    # One line an utterance. Yours come from wherever transcripts are kept; without "text", the model's own are used.
    own = [{"audio": str(u.audio), "text": u.text} for u in tarq.testbed.calibration_pool()[:16]]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in own))
    config = tarq.TarqConfig(samples=16)  # the default method; 128 utterances or more for a real model

    plan = tarq.plan(model, config, calibration=manifest)  # reads neither audio nor weights
    packed = [layer.name for layer in plan.layers if layer.group_size]
    print(f"plan: {len(packed)} of {len(plan.layers)} layers will be packed; problems: {plan.problems or 'none'}")

    recognizer = tarq.load_recognizer(model)
    report = tarq.quantize(recognizer, manifest, config)
    tarq.save(recognizer, out, report)
    print(f"saved: {len(report.layers)} layers packed, {report.calibration['utterances']} utterances")
    print(f"notes: {'; '.join(report.notes) or 'none'}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = sys.argv[1:] or [str(tarq.testbed.model()), f"{folder}/out"]
        main(given[0], Path(given[1]), Path(folder) / "speech.jsonl")
