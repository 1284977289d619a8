"""Every metric but VIEScore: pictures are read when their turn comes, and each row gets a number or a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from baselines.metrics.protocol import Metric, Missing, Pictures, SetMetric
from baselines.results.records import MISSING, SCORED, WHOLE_SET, Prediction, ScoredSample, scored_row
from emu3.tokenizer.images import read_image

# Rows whose pictures are in memory at once; a metric makes its own batches of them.
WINDOW = 64


def measure(metric: Metric | SetMetric, rows: Sequence[Prediction], folder: Path) -> list[ScoredSample]:
    """A row of the scores file per prediction, in order, or one over all of them for a metric over a set. Paths of the
    rows start from `folder`."""
    if hasattr(metric, "score_set"):
        return [_measure_set(cast(SetMetric, metric), rows, folder)]
    return list(_measure_rows(cast(Metric, metric), rows, folder))


def _measure_rows(metric: Metric, rows: Sequence[Prediction], folder: Path) -> Iterator[ScoredSample]:
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        for row, result in zip(window, metric.score([_pictures(row, folder) for row in window]), strict=True):
            if isinstance(result, Missing):
                yield scored_row(row, metric.name, MISSING, None, detail=result.reason)
            else:
                yield scored_row(row, metric.name, SCORED, float(result))


def _measure_set(metric: SetMetric, rows: Sequence[Prediction], folder: Path) -> ScoredSample:
    result = metric.score_set(_pictures(row, folder) for row in rows)
    if isinstance(result, Missing):
        row = scored_row(rows[0], metric.name, MISSING, None, detail=result.reason)
    else:
        value, n = result
        row = scored_row(rows[0], metric.name, SCORED, float(value), parts={"n": n})
    return replace(
        row,
        id=WHOLE_SET,
        split=_only({prediction.split for prediction in rows}),
        task=_only({prediction.task for prediction in rows}),
        source_set=_only({prediction.source_set for prediction in rows}),
    )


def _only(values: set[str]) -> str:
    """What all rows have in common, else nothing."""
    return values.pop() if len(values) == 1 else ""


def _pictures(row: Prediction, folder: Path) -> Pictures:
    source, edited, target, mask = (
        read_image(folder / name, str(folder / name)) if name is not None else None
        for name in (row.source, row.edited, row.target, row.mask)
    )
    assert source is not None and edited is not None
    return Pictures(
        source=source,
        edited=edited,
        target=target,
        instruction=row.instruction,
        source_caption=row.source_caption,
        target_caption=row.target_caption,
        mask=mask.convert("L") if mask is not None else None,
    )
