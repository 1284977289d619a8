"""Text in many scripts, the same on every machine: words of instructions, whole Unicode blocks, and what lies between.

It is made here so that a test needs no dataset; what is hard for a tokenizer (marks, joiners, runs of blanks and
line ends, contractions, digits of other scripts) is more frequent than in any real text.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

WORDS = {
    "Latin": "make the sky purple don't move Größe naïve château żółw İstanbul ǆabe straße coöperate it's WE'LL",
    "Vietnamese": "làm cho bầu trời tím đừng di chuyển hình tròn đỏ",
    "Greek": "κάνε τον ουρανό μωβ πρόσθεσε έναν σκύλο ἀρχῇ",
    "Cyrillic": "сделай небо фиолетовым добавь собаку щётка їжак",
    "Armenian": "երկինքը դարձրու մանուշակագույն շուն",
    "Georgian": "გახადე ცა იისფერი დაამატე ძაღლი",
    "Hebrew": "הפוך את השמיים לסגולים שָׁלוֹם",
    "Arabic": "اجعل السماء بنفسجية أضف كلبًا مُحَمَّد",
    "Persian": "آسمان را بنفش کن می‌خواهم",
    "Devanagari": "आकाश को बैंगनी करो क्षत्रिय ज़मीन",
    "Bengali": "আকাশ বেগুনি করো ক্ষমা",
    "Tamil": "வானத்தை ஊதா நிறமாக்கு ஸ்ரீ",
    "Telugu": "ఆకాశాన్ని ఊదా రంగులో చేయి",
    "Thai": "ทำให้ท้องฟ้าเป็นสีม่วงน้ำ",
    "Khmer": "ធ្វើឱ្យមេឃពណ៌ស្វាយ",
    "Ethiopic": "ሰማዩን ሐምራዊ አድርግ",
    "Tibetan": "ནམ་མཁའ་སྨུག་པོ་བཟོ",
    "Han": "把天空变成紫色 添加一只狗 龍馬精神",
    "Kana": "空を紫にして イヌをついか ﾊﾝｶｸ がぎぐ",
    "Hangul": "하늘을 보라색으로 강아지를 추가해",
}
BETWEEN = [
    " ",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    " \n\n ",
    ", ",
    ". ",
    "! ",
    "...",
    " (",
    ") ",
    "-",
    "/",
    "\u00a0",
    "\u3000",
]
PIECES = [
    "'s", "'S", "'ll", "'RE", "'ſ", "’t", "12345", "3.14", "٣٤٥", "४२", "½", "Ⅻ", "²", "x²", "#ff00aa", "a_b", "=>",
    "🎨", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇪🇺", "e\u0301", "A\u030a", "q\u0307\u0323", "\u0338",
    "\u200b", "\u200d", "\ufeff", "\u2028", "\u0085", "\x00", "\x1b[0m", "\ufffd", "ﬁ", "Å",
    "\u1112\u1161\u11ab", "𝔘𝔫𝔦", "𐍈", "<|", "|>", "<|extra_1", "image start|>",
]  # fmt: skip
FIRST, LAST = 0x20, 0x2FFFF


def sample(characters: int, seed: int) -> str:
    """At least `characters` characters: words of every script, single characters from all of Unicode, and between."""
    draw = random.Random(seed)
    words = [text.split() for text in WORDS.values()]
    parts: list[str] = []
    length = 0
    while length < characters:
        kind = draw.random()
        if kind < 0.75:
            part = draw.choice(draw.choice(words))
        elif kind < 0.9:
            part = draw.choice(PIECES)
        else:
            part = _neighbours(draw)
        parts += [part, draw.choice(BETWEEN) if draw.random() < 0.8 else ""]
        length += len(parts[-1]) + len(part)
    return "".join(parts)


def letters_by_script(text: str) -> Counter[str]:
    """How many letters of each script `text` has, by the first word of their Unicode names."""
    return Counter(unicodedata.name(letter, "UNNAMED").split()[0] for letter in text if letter.isalpha())


def _neighbours(draw: random.Random) -> str:
    """Up to five assigned characters that stand next to each other in Unicode."""
    start = draw.randint(FIRST, LAST)
    run = (chr(point) for point in range(start, start + 5))
    return "".join(character for character in run if unicodedata.category(character) not in ("Cn", "Cs", "Co"))
