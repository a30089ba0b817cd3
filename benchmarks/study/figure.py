"""``python -m benchmarks.study.figure``: README's figure, from the kept results of the transcribed study.

How much log-likelihood the true token of a rare word loses, for each model under GPTQ and under the default, and how
much of GPTQ's damage the default takes back. One file that stands by itself, readable on a light page and a dark one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tarq.files import write_whole
from tarq.reports.markup import Html, element, joined
from tarq.reports.statistics import Comparison, Condition, Study
from tarq.scoring.bootstrap import Interval

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "rare-damage.svg"
#: Model to its results.
RESULTS = {name: ROOT / "benchmarks" / "results" / f"bars-{name}.json" for name in ("whisper-tiny.en", "whisper-base")}
ARMS = {"gptq": "GPTQ", "refined": "tarq"}
FIGURE = "delta_nll_rare"
#: Pixels: the whole width, where bars begin and end, a bar's height and the way to the next, a model's heading.
WIDTH, LEFT, RIGHT, BAR, STEP, HEADING = 760, 90, 650, 18, 28, 34
STYLE = """
text{font:15px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}
.model{font-weight:600}.small{font-size:13px;fill:#59636e}
.gptq{fill:#9aa4af}.refined{fill:#0969da}.share{font-weight:600;fill:#0969da}line{stroke:#1f2328;stroke-width:1.5}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.gptq{fill:#59636e}.refined,.share{fill:#4493f8}
line{stroke:#e6edf3}}
"""


class Panel(NamedTuple):
    """A model: its arms' damage, and the default's share of GPTQ's that it takes back."""

    model: str
    damage: dict[str, Interval]
    compared: Comparison


def panels() -> list[Panel]:
    """The models at W4 with 128 utterances, as README's tables have them."""
    made = []
    for model, path in RESULTS.items():
        study = Study(json.loads(path.read_text()), Condition(model, "uniform", 128, 4), figures=(FIGURE,))
        values = {arm: study.value(arm, FIGURE) for arm in ARMS}
        compared = study.compare("refined", "gptq", FIGURE)
        assert compared is not None, f"{path} lacks an arm"
        made.append(Panel(model, {arm: value.interval() for arm, value in values.items() if value}, compared))
    return made


def svg(shown: list[Panel]) -> Html:
    """The figure."""
    most = max(known.high for panel in shown for known in panel.damage.values())
    at = lambda value: LEFT + (RIGHT - LEFT) * max(value, 0) / most  # noqa: E731
    marks, y = [], 24
    for panel in shown:
        draws = len(panel.compared.draws)
        name = panel.model.replace("whisper-", "Whisper ")
        note = f"{draws} calibration draw{'s' if draws > 1 else ''}"
        marks.append(element("text", name, x=0, y=y, class_="model"))
        marks.append(element("text", note, x=RIGHT, y=y, class_="small", text_anchor="end"))
        y += 12
        for arm, title in ARMS.items():
            known, middle = panel.damage[arm], y + BAR / 2
            end = at(known.value) - LEFT
            marks += [
                element("text", title, x=0, y=middle + 5),
                element("rect", x=LEFT, y=y, width=f"{end:.1f}", height=BAR, rx=2, class_=arm),
                element("line", x1=f"{at(known.low):.1f}", x2=f"{at(known.high):.1f}", y1=middle, y2=middle),
                element("text", f"+{known.value:.3f}", x=RIGHT + 12, y=middle + 5),
            ]
            if arm == "refined":
                share = f"{100 * panel.compared.recovered.value:.0f} % taken back"
                marks.append(element("text", share, x=f"{at(known.high) + 12:.1f}", y=middle + 5, class_="share"))
            y += STEP
        y += HEADING - 12
    marks.append(
        element("text", "Nats lost per token of a rare word, 4 bits; 95 % intervals", x=0, y=y, class_="small")
    )
    spoken = "; ".join(
        f"{p.model}: GPTQ +{p.damage['gptq'].value:.3f}, tarq +{p.damage['refined'].value:.3f}" for p in shown
    )
    style = element("style", Html(STYLE.strip()))
    return element(
        "svg", style, element("title", f"Damage to rare words. {spoken}"), joined(marks),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {y + 10}", role="img",
    )  # fmt: skip


if __name__ == "__main__":
    write_whole(OUT, svg(panels()) + "\n")
    print(f"written to {OUT.relative_to(ROOT)}")
