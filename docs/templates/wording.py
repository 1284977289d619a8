"""A wording of one's own for VIEScore's two questions.

    python -m baselines.score --predictions runs/x/eval/sft_s --judge-url URL --prompts docs/templates/wording.py:SHORT
    bash scripts/rl.sh rl/configs/earl.jsonnet judge.prompts=docs/templates/wording.py:SHORT

An instance of `EditPrompts`. Replies are read as always: a JSON object whose "score" is a list of two numbers, 0 to 10.
`<instruction>` is where the instruction goes. The SHA-256 of both texts stands in every table, as `wording`.
"""

from __future__ import annotations

from rl.reward.viescore import EditPrompts

FORM = 'Answer with one JSON object: {"reasoning": "...", "score": [first, second]}.'

SHORT = EditPrompts(
    edit=f"""Two images: a source, and what an editor made of it.
Editing instruction: <instruction>
First score, 0 to 10: how far the instruction was carried out. Second, 0 to 10: how well all else was kept.
{FORM}""",
    quality=f"""One image, made by an editor.
First score, 0 to 10: how natural it looks. Second, 0 to 10: how free it is of artifacts.
{FORM}""",
)
