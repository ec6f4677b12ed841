"""One picture of a model's quality.

Belongs here: drawing. Does not belong here: computing what is drawn (`ml.evaluation`).
"""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ml.evaluation import Curves, Evaluation

INK, ACCENT, QUIET = "#22223b", "#2a6f97", "#adb5bd"


def performance_png(curves: Curves, evaluation: Evaluation, title: str) -> bytes:
    """ROC, precision-recall and calibration on the test rows side by side, as a PNG."""
    figure = Figure(figsize=(13, 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK)
    roc, recall, calibration = figure.subplots(1, 3)

    roc.plot([0, 1], [0, 1], color=QUIET, linestyle="--", label="chance")
    roc.plot(*zip(*curves.roc, strict=True), color=ACCENT, label=f"AUC {evaluation.auc}")
    roc.set(
        title="ROC", xlabel="stayers wrongly flagged", ylabel="leavers found", xlim=(0, 1), ylim=(0, 1.02)
    )
    roc.legend(loc="lower right")

    recall.axhline(
        evaluation.base_rate, color=QUIET, linestyle="--", label=f"base rate {evaluation.base_rate:.3f}"
    )
    recall.plot(
        *zip(*curves.precision_recall, strict=True),
        color=ACCENT,
        label=f"average precision {evaluation.average_precision}",
    )
    recall.set(title="Precision-recall", xlabel="leavers found", ylabel="of those flagged, leavers")
    recall.set(xlim=(0, 1), ylim=(0, 1.02))
    recall.legend(loc="upper right")

    said = [point[0] for point in curves.calibration]
    seen = [point[1] for point in curves.calibration]
    limit = max(*said, *seen, 0.01) * 1.1
    calibration.plot([0, limit], [0, limit], color=QUIET, linestyle="--", label="perfect")
    calibration.plot(said, seen, color=ACCENT, marker="o", label=f"ECE {evaluation.ece}")
    calibration.set(title="Calibration (tenths of the rows)", xlabel="said", ylabel="seen")
    calibration.set(xlim=(0, limit), ylim=(0, limit))
    calibration.legend(loc="upper left")

    for axes in (roc, recall, calibration):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
