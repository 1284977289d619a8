"""The report says what the scores say, and nothing that they do not."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from baselines import gallery, report
from baselines.charts import interval_bar, line_chart, nice_ticks, running_mean
from baselines.curves import read_curves
from baselines.headline import findings
from baselines.summary import Row, summarise
from emu3.errors import UserError

MakeRun = Callable[..., Path]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """Attributes of all elements of a page, by tag; raises on tags that do not nest."""

    VOID = ("meta", "link", "img", "input", "rect", "circle", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_page_with_everything_in_it(make_run: MakeRun) -> None:
    values = {"no-edit": [2.0] * 8, "sft": [3.0] * 8, "sft__rl": [5.0] * 8, "ground-truth": [9.0] * 8}
    folder = make_run(values)
    training = folder / "train" / "sft__rl"
    training.mkdir(parents=True)
    lines = [json.dumps({"step": step, "reward": step / 10, "kl": 0.0, "entropy": None}) for step in range(1, 30)]
    (training / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = report.run(folder, title="A title", candidate="sft__rl", reference="sft")
    text = read(page)
    found = Elements(text).found
    assert "On complex edits sft__rl beats sft: 5.00 against 3.00." in text
    assert "+2.00 [+2.00, +2.00]" in text and "do not overlap" in text
    assert "the judge" in text and "A title" in text
    assert len(found["article"]) == 8
    # Source, two edits and the target of each sample; no-edit and ground truth are not drawn a second time.
    assert len(found["img"]) == 8 * 4
    assert all(image["alt"] and image["loading"] == "lazy" for image in found["img"])
    assert "Reward over steps 1 to 29" in text and "Entropy" not in text


def test_needs_nothing_from_outside(make_run: MakeRun) -> None:
    """Guards file:// and offline use: every address in the page is a data URL or a place in it."""
    found = Elements(read(report.run(make_run({"m": [1.0, 2.0]})))).found
    addresses = [
        element[name] or ""
        for elements in found.values()
        for element in elements
        for name in ("src", "href")
        if name in element
    ]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)


def test_a_failed_sample_has_no_score(make_run: MakeRun) -> None:
    """Guards against a failure that is drawn, sorted or averaged as a number."""
    text = read(report.run(make_run({"m": [None, 4.0, 6.0, None]})))
    cards = [json.loads(card["data-scores"] or "") for card in Elements(text).found["article"]]
    assert cards == [{}, {"m": 4.0}, {"m": 6.0}, {}]
    assert text.count('class="failed"') == 2 and text.count('class="score"') == 2
    assert text.count("1 failed") >= 2 and "no score: unparsable. words" in text


def test_text_of_the_data_stays_text(make_run: MakeRun) -> None:
    """Guards against an instruction or an answer that becomes markup or script."""
    folder = make_run({"m</script><b>": [1.0, 2.0]}, instruction="<script>alert(1)</script> & \"more\" 'text'")
    text = read(report.run(folder))
    assert len(Elements(text).found["script"]) == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in text


def test_many_pictures_lie_beside_the_page(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards size: above the bound the page refers to files, equal pictures once, and the files are there."""
    monkeypatch.setattr(gallery.Album.__init__, "__defaults__", (0,))
    folder = make_run({"one": [1.0, 2.0], "two": [1.0, 2.0]})
    page = report.run(folder)
    images = Elements(read(page)).found["img"]
    addresses = {image["src"] or "" for image in images}
    assert len(images) == 8 and len(addresses) == 6  # the models' names are of one length, so their edits are equal
    assert all((page.parent / address).is_file() for address in addresses)
    assert "data:image" not in read(page)


def test_small_pictures_grow_by_whole_pixels(make_run: MakeRun) -> None:
    small = Elements(read(report.run(make_run({"m": [1.0]}, size=48)))).found["img"][0]
    assert (small["width"], small["height"], small["class"]) == ("144", "144", "tiny")


def test_large_pictures_shrink(make_run: MakeRun) -> None:
    large = Elements(read(report.run(make_run({"m": [1.0]}, size=400)))).found["img"][0]
    assert (large["width"], large["height"]) == ("256", "256") and "class" not in large


def test_the_same_run_gives_the_same_page(make_run: MakeRun) -> None:
    folder = make_run({"m": [1.0, None, 3.0]})
    first = report.run(folder).read_bytes()
    assert report.run(folder).read_bytes() == first


def test_bad_input_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no scores.parquet under"):
        report.run(tmp_path)
    folder = make_run({"m": [1.0]})
    with pytest.raises(UserError, match="no scores of 'rl', only of m"):
        report.run(folder, candidate="rl")
    (folder / "eval" / "m" / "0-edited.png").unlink()
    with pytest.raises(UserError, match=r"0-edited.png cannot be read"):
        report.run(folder)


def rows_for(make_score: Callable[..., object], **values: list[float]) -> list[Row]:
    scores = [
        make_score(str(place), value, model=model, split="complex")
        for model, numbers in values.items()
        for place, value in enumerate(numbers)
    ]
    return summarise(scores, reference="sft")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rl", "claim", "evidence"),
    [
        ([5.0, 6.0, 5.0, 6.0, 5.5, 5.5], "beats sft: 5.50 against 2.50", "do not overlap"),
        ([2.1, 3.1, 2.1, 3.1, 2.6, 2.6], "beats sft: 2.60 against 2.50", "means overlap"),
        ([1.0, 4.0, 3.0, 2.0, 1.0, 4.0], "cannot be told apart: 2.50 against 2.50", "means overlap"),
        ([1.0, 2.0, 1.0, 2.0, 1.5, 1.5], "loses to sft: 1.50 against 2.50", "overlap"),
    ],
)
def test_the_headline_claims_what_the_intervals_allow(
    make_score: Callable[..., object], rl: list[float], claim: str, evidence: str
) -> None:
    """Guards the first sentence: no victory from noise, and a defeat is called one."""
    [finding] = findings(rows_for(make_score, sft=[2.0, 3.0, 2.0, 3.0, 2.5, 2.5], rl=rl), "rl", "sft")
    assert claim in finding.claim and finding.claim.startswith("On complex edits rl")
    assert evidence in finding.evidence


def test_the_headline_names_a_control_that_is_ahead(make_score: Callable[..., object]) -> None:
    """Guards honesty: a control that wins is not left to the reader to find; ground truth is no competitor."""
    rows = rows_for(make_score, sft=[2.0, 3.0], rl=[5.0, 6.0], control=[8.0, 9.0], truth=[10.0, 10.0])
    [finding] = findings(rows, "rl", "sft", bounds=["truth"])
    assert "The highest mean is that of control: 8.50" in finding.evidence


def test_the_headline_without_judged_samples_claims_nothing(make_score: Callable[..., object]) -> None:
    rows = rows_for(make_score, sft=[2.0], rl=[None, 3.0])  # type: ignore[list-item]
    [finding] = findings(rows, "rl", "sft")
    assert "too few samples" in finding.claim


def test_curves_of_a_resumed_and_a_cut_log(tmp_path: Path) -> None:
    """Guards the log of a run that was killed: a repeated step counts once, half a line not at all."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "reward": 1}\n{"step": 2, "reward": 9}\n{"step": 2, "reward": 2}\n{"step": 3, "rew')
    [curve] = read_curves(log)
    assert (curve.steps, curve.values) == ([1.0, 2.0], [1.0, 2.0])
    log.write_text("nonsense\n")
    with pytest.raises(UserError, match="line 1: not a JSON object with a step"):
        read_curves(log)


def test_a_bar_is_as_long_as_its_score() -> None:
    assert re.search(r'class="bar"[^>]* width="90.0"', interval_bar(5.0, (4.0, 6.0)))
    assert "bar" not in interval_bar(None, None)


@pytest.mark.parametrize(("steps", "values"), [([3.0], [2.0]), ([1.0, 2.0], [5.0, 5.0]), ([0.0, 1e6], [-1e-9, 1e-9])])
def test_a_chart_of_hardly_any_data_is_still_a_chart(steps: list[float], values: list[float]) -> None:
    """Guards divisions by the span of one point or of a constant."""
    assert "nan" not in line_chart("x", steps, values).lower()


def test_ticks_span_the_data_with_round_numbers() -> None:
    assert nice_ticks(0.13, 0.87) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(4.0, 4.0) == [4.0]


def test_running_mean_keeps_a_constant_and_its_length() -> None:
    assert running_mean([2.0] * 50) == pytest.approx([2.0] * 50)
