"""The report says what the scores say, and nothing that they do not."""

from __future__ import annotations

import argparse
import dataclasses
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baselines import report
from baselines.page import gallery
from baselines.page.run_folder import add_label_flag, read_training
from baselines.report import findings, interval_bar
from baselines.results.records import Prediction, read_records, write_records
from baselines.tables.summary import Row, summarise
from emu3.errors import UserError
from emu3.report.charts import line_chart

MakeRun = Callable[..., Path]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def gallery_of(page: Path) -> Any:
    """What the page's script is given."""
    match = re.search(r'<script type="application/json" id="data"[^>]*>(.*?)</script>', read(page), re.DOTALL)
    assert match
    return json.loads(match[1])


class Elements(html.parser.HTMLParser):
    """Attributes of all elements of a page, by tag; raises on tags that do not nest."""

    VOID = ("meta", "link", "input", "img", "rect", "circle", "path")

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
    sft, rl = [2.9, 2.9, 3.1, 3.1] * 2, [4.5, 4.5, 5.5, 5.5] * 2
    values = {"no-edit": [2.0] * 8, "sft": sft, "sft__rl": rl, "ground-truth": [9.0] * 8}
    folder = make_run(values)
    training = folder / "train" / "sft__rl"
    training.mkdir(parents=True)
    lines = [json.dumps({"step": step, "reward": step / 10, "kl": 0.0, "entropy": None}) for step in range(1, 30)]
    (training / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = report.run(folder, title="A title", candidate="sft__rl", reference="sft")
    text = read(page)
    found = Elements(text).found
    assert "On complex edits sft__rl beats sft: 5.00 against 3.00." in text
    assert "+2.00 [+1.60, +2.40]" in text and "do not overlap" in text
    assert "the judge" in text and "A title" in text
    gallery = gallery_of(page)
    assert len(gallery["samples"]) == 8 and gallery["models"] == list(values)
    assert (gallery["bounds"], gallery["noEdit"], gallery["groundTruth"]) == ([0, 3], 0, 3)
    assert len(found["table"]) == 3 and "Reward over steps 1 to 29" in text and "Entropy" not in text
    assert "KL to the reference over" not in text and "The same in every step: KL to the reference 0." in text


def test_needs_nothing_from_outside(make_run: MakeRun) -> None:
    """Guards file:// and offline use: every address in the page is a data URL or a place in it."""
    page = report.run(make_run({"m": [1.0, 2.0]}))
    addresses = [
        element[name] or ""
        for elements in Elements(read(page)).found.values()
        for element in elements
        for name in ("src", "href")
        if name in element
    ]
    addresses += [image[0] for image in gallery_of(page)["images"]]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)


def test_tables_need_no_script(make_run: MakeRun) -> None:
    """Guards a reader without JavaScript: numbers are in the markup, and the page says what is not."""
    text = read(report.run(make_run({"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}), reference="a"))
    body = text[: text.index('<script type="application/json"')]
    assert "<b>4.00</b>" in body and "+2.00" in body and "<noscript>" in body


def test_a_failed_sample_has_no_score(make_run: MakeRun) -> None:
    """Guards against a failure that is drawn, sorted or averaged as a number."""
    page = report.run(make_run({"m": [None, 4.0, 6.0, None]}))
    verdicts = [sample["verdicts"][0] for sample in gallery_of(page)["samples"]]
    assert [verdict[0] for verdict in verdicts] == [None, 4.0, 6.0, None]
    assert [verdict[1] for verdict in verdicts] == ["unparsable", "4.0", "6.0", "unparsable"]
    assert verdicts[0][2] == "no score: unparsable. words"
    assert read(page).count("1 failed") >= 2


def test_text_of_the_data_stays_text(make_run: MakeRun) -> None:
    """Guards against an instruction or an answer that becomes markup or script."""
    text = "<script>alert(1)</script> & \"more\" 'text'"
    page = report.run(make_run({"m</script><b>": [1.0, 2.0]}, instruction=text))
    assert len(Elements(read(page)).found["script"]) == 3
    assert gallery_of(page)["samples"][0]["text"] == text
    assert gallery_of(page)["models"] == ["m</script><b>"]


def test_many_images_lie_beside_the_page(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards size: above the bound the page refers to files, equal images once, and only those are there, beside what
    somebody else put into the folder."""
    monkeypatch.setattr(gallery.Album.__init__, "__defaults__", (0,))
    folder = make_run({"one": [1.0, 2.0], "two": [1.0, 2.0]})
    stale = folder / "report-pictures" / f"{'0' * 24}.png"
    stale.parent.mkdir()
    stale.touch()
    others = [stale.with_name("old.png"), stale.with_name("notes.txt"), stale.with_name("kept") / "a.png"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("mine")
    page = report.run(folder)
    addresses = [image[0] for image in gallery_of(page)["images"]]
    assert len(addresses) == 6  # the models' names are of one length, so their edits are equal
    assert all(other.read_text() == "mine" for other in others)
    ours = {path.name for path in stale.parent.iterdir()} - {"old.png", "notes.txt", "kept"}
    assert sorted(addresses) == sorted(f"report-pictures/{name}" for name in ours)
    assert "data:image" not in read(page)


def test_small_images_grow_by_whole_pixels(make_run: MakeRun) -> None:
    [_, *small] = gallery_of(report.run(make_run({"m": [1.0]}, size=48)))["images"][0]
    assert small == [144, 144, True]


def test_large_images_shrink(make_run: MakeRun) -> None:
    [_, *large] = gallery_of(report.run(make_run({"m": [1.0]}, size=400)))["images"][0]
    assert large == [256, 256, False]


def test_reasoning_stands_with_its_sample(make_run: MakeRun) -> None:
    """Guards the chain of thought, and the boxes that it names in pixels of a source of 16 by 16."""
    folder = make_run({"m": [1.0, 2.0]})
    file = folder / "eval/m/predictions.parquet"
    first, second = read_records(file, Prediction)
    text = "The cup [4, 8, 12, 16] moves to (8, 4)."
    write_records(file, [first, dataclasses.replace(second, reasoning=text)], {})
    samples = gallery_of(report.run(folder))["samples"]
    assert samples[0]["reasoning"] == []
    marks = {"boxes": [[0.25, 0.5, 0.75, 1.0]], "points": [[0.5, 0.25]]}
    assert samples[1]["reasoning"] == [{"model": 0, "text": text} | marks]


def test_other_metrics_and_benchmarks_have_their_tables(make_run: MakeRun, make_score: Callable[..., Any]) -> None:
    """Guards the page of a real evaluation: benchmarks side by side, published scores, metrics where less is more."""
    folder = make_run({"earl": [1.0, 2.0]})
    file = folder / "eval/earl/scores.parquet"
    scores = [
        make_score(str(row), 5.0 + row, model="earl", benchmark=name)
        for name in ("omniedit", "emuedit", "aurora")
        for row in range(3)
    ]
    scores += [make_score(f"sample-{row}", row / 100, model="earl", metric="l1") for row in range(2)]
    write_records(file, scores, {"judge": "g", "prompts": "ab" * 32, "metric l1": {"higher_is_better": False}})
    text = read(report.run(folder))
    assert 'class="dense"' in text and "AVG of 3" in text and "n 3" in text
    assert "Beside the published scores" in text and "6.39" in text
    assert "lower is better" in text and "<b>0.005000</b>" in text
    assert "g (wording abababab)" in text


def test_a_run_without_a_judge_is_shown_by_what_it_has(make_run: MakeRun, make_score: Callable[..., Any]) -> None:
    """Guards scales: bars of another metric end at its largest value, and no headline is made of it."""
    folder = make_run({"a": [1.0], "b": [1.0]})
    for place, model in enumerate(("a", "b")):
        row = make_score("sample-0", 0.2 + place, model=model, metric="l1")
        write_records(folder / "eval" / model / "scores.parquet", [row], {})
    page = report.run(folder, candidate="b", reference="a")
    assert gallery_of(page)["scale"] == 1.2 and gallery_of(page)["samples"][0]["verdicts"][0][1] == "0.2000"
    assert "<h1>Edits of 1 samples by a, b</h1>" in read(page)


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
        ([5.0, 6.0, 5.0, 6.1, 5.5, 5.4], "beats sft: 5.50 against 2.50", "do not overlap"),
        ([2.1, 3.1, 2.15, 3.1, 2.6, 2.55], "beats sft: 2.60 against 2.50", "means overlap"),
        ([1.0, 4.0, 3.0, 2.0, 1.0, 4.0], "cannot be told apart: 2.50 against 2.50", "means overlap"),
        ([1.0, 2.0, 1.1, 2.0, 1.5, 1.4], "loses to sft: 1.50 against 2.50", "overlap"),
        ([3.0, 4.0, 3.0, 4.0, 3.5, 3.5], "and sft differ by the same on all 6 samples: 3.50 against 2.50", ""),
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
    rows = rows_for(make_score, sft=[2.0, 3.0], rl=[5.0, 6.5], control=[8.0, 9.0], truth=[10.0, 10.0])
    [finding] = findings(rows, "rl", "sft", bounds=["truth"])
    assert "The highest mean is that of control: 8.50" in finding.evidence


@pytest.mark.parametrize(
    ("control", "claim"),
    [
        ([4.0, 5.0, 4.1, 5.0, 4.5, 4.4], "GRPO beats the control with the same compute, more SFT: 4.50."),
        ([5.5, 5.5, 5.5, 5.5, 5.5, 5.5], "GRPO cannot be told apart from the control with the same compute, more SFT"),
        ([7.0, 7.0, 7.0, 7.0, 7.0, 7.2], "GRPO loses to the control with the same compute, more SFT: 7.03."),
        ([None] * 6, "GRPO could not be compared with the control with the same compute, more SFT."),
    ],
)
def test_the_headline_sets_the_control_beside_the_winner(
    make_run: MakeRun, control: list[float | None], claim: str
) -> None:
    """Guards a first sentence that says who won over its own start, and not whether that took RL at all; and one in
    names of folders."""
    rl = [5.0, 6.0, 5.0, 6.1, 5.5, 5.4]
    values = {"sft": [2.0, 3.0, 2.0, 3.0, 2.5, 2.5], "rl": rl, "more": control}
    labels = {"rl": "GRPO", "sft": "SFT", "more": "more SFT"}
    doubled = {model: [value for value in numbers for _ in range(2)] for model, numbers in values.items()}
    page = report.run(make_run(doubled), candidate="rl", reference="sft", control="more", labels=labels)
    heading = re.search("<h1>(.*?)</h1>", read(page), re.DOTALL)
    assert heading and heading[1].startswith("On complex edits GRPO beats SFT: 5.50 against 2.50. ")
    assert claim in heading[1]
    assert '<th scope="row" title="more">more SFT</th>' in read(page) and "GRPO is rl" in read(page)
    assert gallery_of(page)["labels"] == ["more SFT", "GRPO", "SFT"]


def test_labels_and_controls_of_nobody_are_refused(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run({"m": [1.0]})
    for wrong in ({"labels": {"other": "x"}}, {"control": "other"}):
        with pytest.raises(UserError, match="no scores of 'other', only of m"):
            report.run(folder, **wrong)  # type: ignore[arg-type]
    parser = argparse.ArgumentParser()
    add_label_flag(parser)
    assert parser.parse_args(["--label", "a=b=c", "--label", "m=x"]).labels == {"a": "b=c", "m": "x"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--label", "a"])
    assert "expected MODEL=WORDS, not 'a'" in capsys.readouterr().err


def test_the_headline_names_what_stands_side_by_side(make_score: Callable[..., Any]) -> None:
    rows = [
        make_score("a", value, model=model, split=split)
        for model, value in (("sft", 1.0), ("rl", 2.0))
        for split in ("simple", "AVG", "OmniEdit")
    ]
    claims = [finding.claim for finding in findings(summarise(rows, reference="sft"), "rl", "sft")]
    assert all(" ".join(claims).count(where) == 1 for where in ("On simple edits", "On average", "On OmniEdit t"))


def test_the_headline_without_judged_samples_claims_nothing(make_score: Callable[..., object]) -> None:
    rows = rows_for(make_score, sft=[2.0], rl=[None, 3.0])  # type: ignore[list-item]
    [finding] = findings(rows, "rl", "sft")
    assert "too few samples" in finding.claim


def test_curves_of_a_resumed_and_a_cut_log(tmp_path: Path) -> None:
    """Guards the log of a run that was killed: a repeated step counts once, half a line not at all."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "reward": 1}\n{"step": 2, "reward": 9}\n{"step": 2, "reward": 2}\n{"step": 3, "rew')
    [curve] = read_training(tmp_path).curves
    assert (curve.steps, curve.values) == ([1.0, 2.0], [1.0, 2.0])
    log.write_text("nonsense\n")
    with pytest.raises(UserError, match="line 1: not a JSON object with a step"):
        read_training(tmp_path)


def test_a_bar_is_as_long_as_its_score() -> None:
    assert re.search(r'class="bar"[^>]* width="90.0"', interval_bar(5.0, (4.0, 6.0), 10.0))
    assert re.search(r'class="bar"[^>]* width="0.0"', interval_bar(-0.5, None, 1.0))
    assert "bar" not in interval_bar(None, None, 10.0)


@pytest.mark.parametrize(("steps", "values"), [([3.0], [2.0]), ([1.0, 2.0], [5.0, 5.0]), ([0.0, 1e6], [-1e-9, 1e-9])])
def test_a_chart_of_hardly_any_data_is_still_a_chart(steps: list[float], values: list[float]) -> None:
    """Guards divisions by the span of one point or of a constant."""
    assert "nan" not in line_chart("x", steps, values).lower()
