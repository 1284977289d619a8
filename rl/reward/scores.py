"""What can come of asking a judge, and the numbers that its replies hold.

An outcome is a score, a reply without a score, or no reply. Only `Score` carries a number, so a caller cannot average,
by accident, over samples that nobody judged. What was not judged is masked out and counted by the caller; it is never
zero.

A score is a verdict, and is read strictly (`parse_scores`). Asked for is one JSON object with a key "score" that holds
a list of numbers. Judges think before it, wrap it in a code fence or in a sentence, use single quotes or leave a comma
too many, give the list alone, put a plain number in quotes, or are cut off in the explanation behind a finished list;
these are read, since they leave no doubt. What leaves doubt is not read: a draft in a thought, finished or not, an
example of the form, an object in a refusal, a second verdict beside the first, a repeated key, a number out of range,
in words or as a fraction, a list of another length, an object that was cut off before its list was whole. Such a reply
is asked for again, which is cheaper than a wrong reward. Nothing is clipped, filled in or rounded.
`published_scores` reads by the rules that the published scores were made with, which take more.

The other reply is the probabilities of one token, which is a digit from 0 to 9; its score is the mean digit under them,
times 10/9. The scale ends at 9 because a digit is one token in every common vocabulary where "10" is one or two, and
all ten digits fit among the likeliest tokens that a server reports.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

LOWEST, HIGHEST = 0.0, 10.0
# The digits' probabilities together. Below, the model is about to say something else, and the digits that it did not
# mean would be scaled up to a score.
LEAST_MASS = 0.5
_TOKEN = re.compile(r"""\s+|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{}\[\]:,]|[^\s{}\[\]:,"']+""", re.DOTALL)
_PLAIN_NUMBER = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_LIST = re.compile(r"\[[^\[\]{}]*\]")
_LABEL = r"(?:scores?|ratings?|verdict|answer|output|result|final|json)"

# How models mark what they think before they answer: a tag or a special token whose name says so, in any brackets, or a
# channel. What a server takes out of the reply itself never comes here.
_THINK = r"[\w:-]{0,20}(?:think|thought|reason|reflect|scratchpad|analysis|monologue|deliberat)\w{0,10}"
_OPEN, _CLOSE = r"(?:<\|?|\[|◁|&lt;)\s*", r"\s*(?:\|?>|\]|▷|&gt;)"
_THOUGHT_BEGINS = re.compile(
    rf"{_OPEN}(?!/|end_){_THINK}{_CLOSE}|<\|channel\|?>(?!\s*final)|<unused94>|\A\s*analysis(?=[A-Z{{\[])",
    re.IGNORECASE,
)
_THOUGHT_ENDS = re.compile(
    rf"{_OPEN}(?:/\s*|end_(?:of_)?){_THINK}{_CLOSE}|<\|channel\|?>\s*final(?:<\|message\|>)?|<channel\|>|<unused95>"
    r"|\bassistantfinal",
    re.IGNORECASE,
)

# Words outside of the verdict by which it is none. A verdict that they hit by chance is asked for again.
_IMAGES = r"(?:images?|pictures?|photos?|attachments?)\b"
_DETERMINED = (
    r"(?:(?:an?|the|any|these|those|this|your|both|two|first|second|source|original|edited|actual|attached|of|to)\s+)"
    rf"{{0,4}}{_IMAGES}"
)
_NOT = r"(?:\b(?:cannot|can\s?not|can['’]?t|won['’]?t|will not|unable to|not able to|refuse to|decline to)\s+)"
_JUDGE = (
    r"(?:assist|help(?! but)|comply|judge|evaluate|rate|score|assess|access|open|analy[sz]e"
    r"|(?:fulfil|complete|process) (?:this|that|your|the request)"
    r"|answer|do (?:this|that|so)|(?:give|provide) (?:you )?(?:an? |any |the |this |that )?"
    rf"(?:score|rating|verdict|evaluation)|(?:see|view) {_DETERMINED}(?! (?:artifact|qualit|noise)))"
)
_NOT_GIVEN = (
    r"\bno (?:\w+ )?(?:images?|attachments?)\s+(?:(?:was|were|is|are|has been|have been)\s+)?"
    r"(?:attached|provided|given|shared|available|uploaded|included|supplied|in (?:this|your) )"
    r"|\bimages?\s+(?:failed|(?:could|did|do|does|is|are|was|were)(?: not|n['’]t))\s+(?:to |be )?"
    r"(?:load|available|attached|provided(?! with)|accessible|uploaded|received|included)"
    r"|\bimages? (?:is|are) missing(?! \w)"
)
_NOT_SEEN = (
    r"(?:n['’]t|\bnot|\bwithout)\s+(?:\w+\s+)?(?:see|seeing|viewing|received?|have|given|provided|find)\s+"
    rf"{_DETERMINED}(?=\s*(?:[.,;:!?\n]|$|in (?:this|our|your) |you |attached|provided|to ))"
)
_REFUSAL = re.compile(
    rf"{_NOT}(?:\w+\s+){{0,2}}?{_JUDGE}|{_NOT_GIVEN}|{_NOT_SEEN}"
    r"|\b(?:please|you) (?:please )?(?:re-?)?(?:provide|upload|share|attach|send)\b"
    rf"|\bI(?:['’]d| would)? need (?:to (?:see|view) )?{_DETERMINED}"
    r"|(?:\bnot?|n['’]t|\black\w*)\s+(?:\w+\s+){0,2}(?:abilit|capabilit)"
    r"|\b(?:must|have to|respectfully) decline\b|\bI(?:['’]d| would)? (?:rather|prefer) not\b"
    r"|\b(?:content|usage|safety) polic|\bviolat\w+ (?:\w+ ){0,3}(?:polic|guidelines|terms)"
    r"|\b(?:sorry|apologi[sz]e|apologies|as an ai|language model|against (?:my|the|our) (?:policy|guidelines))\b"
    r"|tut mir leid|kann (?:ich )?(?:das |dies |diese )?nicht|désolé|ne peux pas|lo siento|no puedo|non posso"
    r"|抱歉|对不起|對不起|无法|無法|不能|извините|не могу|ごめん|申し訳|できません|죄송",
    re.IGNORECASE,
)
_REFUSED_INSIDE = re.compile(
    r"\A\W*(?:unfortunately\W+)?(?:(?:I['’]?m|I am|I|we are|we)\s+)?(?:very |so )?"
    rf"(?:sorry|apolog|as an ai|(?:(?:I|we)\s+)?{_NOT}{_JUDGE})|{_NOT_GIVEN}|\A\W*(?:抱歉|对不起|對不起|无法|無法)",
    re.IGNORECASE,
)
"""The same in the words of a verdict, where much is said to be impossible that is no refusal."""
_EXAMPLE = re.compile(
    r"\b(?:examples?|for instance|e\.g|ex(?=[.:])|(?:would|should|must) (?:look|be)|hypothetical(?:ly)?"
    r"|looks? like (?:this|so|the following)|placeholders?|template|if i (?:could|were|had)|drafts?|first impression"
    r"|tentative(?:ly)?|initial(?:ly)?|at first|perhaps|maybe|might be|could be|suppose|hmm+|not sure"
    r"|samples? (?:output|reply|response|answer))\b|例如|比如|zum beispiel|par exemple|por ejemplo|например",
    re.IGNORECASE,
)
# "The format is ...", but not "in the format that was asked for: ...".
_MANNER = re.compile(
    r"\b(?:in|as|with|per|using|following) (?:\w+ ){0,4}?(?:format|form|schema|structure)\b", re.IGNORECASE
)
_FORM = re.compile(r"\b(?:format|form|schema|structure)\W*(?:is|below|as follows)?\W*(?:json)?\W*$", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|hmm+|actually|correction|scratch that)\b\s*[,.:!…—-]"
    r"|\b(?:on second thought|let me (?:re|double|check|correct)|(?:or|but) rather\b)"
    r"|\b(?:is|was|as|just|only|merely) (?:an? |the )?(?:example|illustration|placeholder|template|draft|form)\b",
    re.IGNORECASE,
)
_MOST_BRACES = 200
_LONG_LEAD = 300
"""Characters before a score that are more than the start of a reply."""
_NEAR = 80
"""Characters before a verdict in which a word for an example is about it."""


@dataclass(frozen=True)
class Score:
    """A judged sample. value: 0 to 10, higher is better. parts: the scores behind it, same range."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Unparsable:
    """The judge replied, again and again, without giving the scores that were asked for. reply: its last words.
    reason: what the server says of their end, such as a limit of tokens; "" where it says nothing."""

    reply: str
    reason: str = ""


@dataclass(frozen=True)
class Unavailable:
    """The judge gave no reply in time, or refused. reason: one line, free of secrets. refused: the request itself is
    at fault (a key, a size, a filter), so that asking again will not help."""

    reason: str
    refused: bool = False


Failure = Unparsable | Unavailable
Outcome = Score | Failure
PartScore = float | Failure
"""One of the numbers that a score is made of, 0 to 10, or why there is none."""


def parse_scores(reply: str, count: int = 2, highest: float = HIGHEST) -> tuple[float, ...] | None:
    """The `count` scores of `reply`, each 0 to `highest`, in its order; None if it does not give exactly these."""
    *_, text = _THOUGHT_ENDS.split(reply)
    if in_a_thought(text) or text.count("{") > _MOST_BRACES:
        return None
    verdict: tuple[int, int, dict[str, Any]] | None = None
    objects = place = 0
    while (start := text.find("{", place)) >= 0:
        strict, end, closed = _as_strict_json(text, start)
        place = end if closed else len(text)
        value = _loaded(strict if closed else _without_explanation(strict, text[end:]))
        if isinstance(value, dict) and "score" in value:
            if verdict is not None:
                return None
            verdict = start, place, value
        elif re.match(r"\{\s*[\"'{]", text[start:]) or (closed and "score" in text[start:end].lower()):
            if not isinstance(value, dict) or "score" in strict.lower():
                return None
            objects += 1
        elif not closed:  # a brace in a sentence
            place = start + 1
    if verdict is None:
        return None if objects else _lone_list(text, count, highest)
    start, end, value = verdict
    before, after = text[:start], text[end:]
    if re.search(r"(?:[\[{(]|[^\w\s],)\s*$", before[-_NEAR:]) or after.lstrip()[:1] in tuple("]}),"):
        return None  # the object is a part of something
    if any(_numbers(_loaded(found), count, highest) for found in _LIST.findall(before) + _LIST.findall(after)):
        return None
    if value.get("refusal") or value.get("error"):
        return None
    if any(isinstance(text, str) and _REFUSED_INSIDE.search(text) for text in value.values()):
        return None
    return None if _in_doubt(before, after) else _numbers(value["score"], count, highest)


def in_a_thought(reply: str, *, cut_off: bool = False) -> bool:
    """Whether the reply ends in a thought: in one that is marked as such, or, where the reply was cut off, in a long
    text in which a score occurs late and which does not end with one. Some servers open the thought in the question, so
    that what is cut off has no mark."""
    *_, text = _THOUGHT_ENDS.split(reply)
    if _THOUGHT_BEGINS.search(text):
        return True
    late = text.lower().find("score") > _LONG_LEAD
    return cut_off and late and not text.rstrip("` \n").endswith(("}", "]"))


def published_scores(reply: str, count: int = 2) -> tuple[float, ...] | None:
    """The `count` scores of `reply` as the published evaluation found them; None where it had none.

    It read from the first brace to the last, without newlines, then with quotes put around bare keys; without braces a
    list alone, then a whole number alone. A further number in the list is passed over. Unlike there, a number out of 0
    to 10 is none, and nothing is guessed in the end.
    """
    start, end = reply.find("{"), reply.rfind("}") + 1
    if start < 0 or end == 0:
        bare = re.fullmatch(r"[^\[]*(\[[0-9]+, ?[0-9]+\])[^\]]*|\s*([+-]?[0-9]{1,3})\s*", reply, re.DOTALL)
        scores = None if bare is None else _loaded(bare[1] or f"[{int(bare[2])}]")
    else:
        text = reply[start:end].replace("\n", "")
        value = _loaded(text)
        if value is None:
            value = _loaded(re.sub(r"(?<![\"\w])(\w+):", r'"\1":', text))
            value = value if isinstance(value, dict) and isinstance(value.get("score"), list) else None
        scores = value.get("score") if isinstance(value, dict) else None
        scores = [scores] if type(scores) in (int, float) else scores
    if isinstance(scores, list) and len(scores) > count:
        scores = scores[:count]
    return _numbers(scores, count)


def mean_score(likeliest: str) -> float | None:
    """10/9 of the mean digit under the digits' probabilities, these scaled to a sum of 1.

    likeliest: JSON list of [token, log-probability]. A token is a digit with or without white space around it. None
    where the digits have less than `LEAST_MASS` together.
    """
    mass = [0.0] * 10
    for token, logprob in json.loads(likeliest):
        digit = token.strip()
        if len(digit) == 1 and digit in "0123456789":
            mass[int(digit)] += math.exp(min(0.0, logprob))
    total = sum(mass)
    if total < LEAST_MASS:
        return None
    return 10 / 9 * sum(digit * share for digit, share in enumerate(mass)) / total


def _in_doubt(before: str, after: str) -> bool:
    """Whether the words around a verdict refuse it, take it back, or call it an example."""
    return bool(
        _REFUSAL.search(before)
        or _REFUSAL.search(after)
        or _EXAMPLE.search(before[-_NEAR:])
        or _FORM.search(_MANNER.sub("", before[-_NEAR:]))
        or _TAKEN_BACK.search(before)
        or _TAKEN_BACK.search(after)
    )


def _lone_list(text: str, count: int, highest: float) -> tuple[float, ...] | None:
    """The scores of a reply without any object: one list, alone, at the start of a line, or behind a label."""
    lists = _LIST.findall(text)
    if len(lists) != 1 or text.count("[") != 1:
        return None
    before, _, after = text.partition(lists[0])
    if not re.search(rf"(?:^|\n|[:=>]|\b{_LABEL}\W*(?:is|are)?)[ \t`*]*$", before, re.IGNORECASE):
        return None
    # Else the sentence goes on: "[7, 8] is the range".
    if not re.match(rf"[ \t`*]*(?:\(?(?:/|out of) ?{highest:g}\)?)?(?:$|[\n.,;。<])", after):
        return None
    return None if _in_doubt(before, after) else _numbers(_loaded(lists[0]), count, highest)


def _numbers(scores: Any, count: int, highest: float = HIGHEST) -> tuple[float, ...] | None:
    """`scores` as numbers if they are a list of `count` such, each 0 to `highest`, in quotes or not."""
    if not isinstance(scores, list) or len(scores) != count:
        return None
    values = [float(x) if isinstance(x, str) and _PLAIN_NUMBER.fullmatch(x.strip()) else x for x in scores]
    if not all(type(value) in (int, float) and LOWEST <= value <= highest for value in values):
        return None
    return tuple(float(value) for value in values)


def _loaded(text: str | None) -> Any:
    """What the JSON `text` holds, None for other text."""
    try:
        return (
            None if text is None else json.loads(text, strict=False, object_pairs_hook=_unique_keys, parse_float=_exact)
        )
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _without_explanation(strict: str, rest: str) -> str | None:
    """Of an object that never closes, the part up to its whole list of scores, closed; None unless a text about them
    has begun behind it, with no further list of scores in it. rest: what follows on `strict`."""
    found = re.match(r"(\{.*?\"score\" : \[ [^\[\]{}]* \]) , \"(?!score\")[^\"]*\" :(.*)", strict, re.DOTALL)
    if found is None or re.search(r"score[\"'\s:=]*\[", found[2] + rest, re.IGNORECASE):
        return None
    return found[1] + "}"


def _as_strict_json(reply: str, start: int) -> tuple[str, int, bool]:
    """The object that opens at `start`, with double quotes and without trailing commas; the place after its end; and
    whether it closes. If it never does, what there is of it, up to the first string without an end."""
    tokens: list[str] = []
    depth = 0
    place = start
    while match := _TOKEN.match(reply, place):
        token, place = match.group(), match.end()
        if token in "}]" and tokens[-1] == ",":
            tokens.pop()
        if not token.isspace():
            tokens.append(_double_quoted(token) if token[0] in "'\"" else token)
        depth += (token in "{[") - (token in "}]")
        if depth == 0:
            return " ".join(tokens), place, True
    return " ".join(tokens), place, False


def _double_quoted(token: str) -> str:
    body = re.sub(r"\\.|\"", lambda m: {"\\'": "'", '"': '\\"'}.get(m.group(), m.group()), token[1:-1], flags=re.DOTALL)
    return f'"{body}"'


def _exact(text: str) -> float:
    """The number as it is written. Raises `ValueError` where the float is another: 1e-400, 10.00000000000000000001."""
    number = float(text)
    if Decimal(repr(number)) != Decimal(text):
        raise ValueError(f"{text} is no float")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def without_surrogates(text: str) -> str:
    """`text` with a replacement character for each half of a character: no file can hold those."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def shortened(text: str) -> str:
    """Somebody else's text for a message of ours: one line, 300 characters at most."""
    return " ".join(without_surrogates(text).split())[:300]
