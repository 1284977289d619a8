"""What a metric is: pictures in, and for each sample a number or the reason why there is none.

A metric never answers with a stand-in. Weights or a package that are not there, a sample without the picture or the
caption that is compared with, a ratio that is infinite: each is `Missing` with its reason, which the next step counts.
Means over samples are not taken here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

Reference = Literal["target", "source"]


@dataclass(frozen=True)
class Pictures:
    """One sample; pictures are RGB. `target` is the picture that the data calls right; captions describe the picture
    before and after the edit; `mask`, of mode L and the source's size, is white where the edit belongs. What the data
    does not have is None.

    The size rule for what is compared pixel by pixel stands in `baselines.metrics.frames`.
    """

    source: Image.Image
    edited: Image.Image
    target: Image.Image | None
    instruction: str
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Missing:
    """No number. reason: one line, equal for equal causes."""

    reason: str


@runtime_checkable
class Metric(Protocol):
    """A number per sample.

    `version` names library, model, weights and preprocessing: two numbers with one name and one version were made
    alike. `needs_target` is true where a sample without target can have no number.
    """

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def needs_target(self) -> bool: ...
    @property
    def version(self) -> str: ...

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        """One finite number or reason per row, in order."""
        ...


@runtime_checkable
class SetMetric(Protocol):
    """One number over a set of samples; the members are those of `Metric`."""

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def needs_target(self) -> bool: ...
    @property
    def version(self) -> str: ...

    def score_set(self, rows: Iterable[Pictures]) -> tuple[float, int] | Missing:
        """(value, number of rows that it was made from), or the reason. Rows may come one by one from a generator."""
        ...


@dataclass(frozen=True)
class AbsentMetric:
    """Stands for a metric whose weights or packages are not there: every answer is `Missing(reason)`."""

    name: str
    higher_is_better: bool
    needs_target: bool
    reason: str

    @property
    def version(self) -> str:
        return f"absent: {self.reason}"

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        return [Missing(self.reason)] * len(rows)


@dataclass(frozen=True)
class AbsentSetMetric:
    """The same for a metric over a set."""

    name: str
    higher_is_better: bool
    needs_target: bool
    reason: str

    @property
    def version(self) -> str:
        return f"absent: {self.reason}"

    def score_set(self, rows: Iterable[Pictures]) -> Missing:
        return Missing(self.reason)
