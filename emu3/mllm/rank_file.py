"""tiktoken rank files: lines of a base64 token and its rank; and the merges that those ranks stand for.

tiktoken joins, again and again, the leftmost pair whose joined bytes have the lowest rank. A BPE model instead wants
named pairs. One pair per rank is enough: nothing outside a token's bytes can change in which order the pairs inside
merge, so a token is only ever built in the step that builds it from its own bytes alone. A rank that greedy merging
of its own bytes does not reach has no pair; it can only stand for a whole piece, which tiktoken looks up first.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path

from emu3.errors import UserError


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank, in rank order.

    Raises UserError if the file is missing or malformed, or the ranks are not 0 ... n-1 with all 256 single bytes.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{path}, line {number}: expected a base64 token and its rank") from None
    ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
    if list(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{path}: a token or a rank is there twice, or the ranks do not run from 0 without a gap")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(f"{path}: not every single byte has a rank")
    return ranks


def write_ranks(path: Path, tokens: Iterable[bytes]) -> None:
    """Write a rank file; the rank of a token is its place in `tokens`."""
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair behind each rank that merging reaches, in rank order. `ranks` must be in rank order itself."""
    pairs = (_last_merge(token, ranks) for token in ranks if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    never = len(ranks)
    # Part i is token[cuts[i] : cuts[i + 1]]; scores[i] is the rank of parts i and i + 1 together.
    cuts = list(range(len(token) + 1))
    scores = [ranks.get(token[i : i + 2], never) for i in range(len(token) - 1)]
    while len(scores) > 1:
        lowest = min(scores)
        if lowest == never:
            return None
        i = scores.index(lowest)  # the leftmost of equals
        del cuts[i + 1], scores[i]
        for left in range(max(i - 1, 0), min(i + 1, len(scores))):
            scores[left] = ranks.get(token[cuts[left] : cuts[left + 2]], never)
    return token[: cuts[1]], token[cuts[1] :]
