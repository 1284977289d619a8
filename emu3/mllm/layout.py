"""Which token id means what and what may come next in an edited image, in one place and in plain integers.

Ids stand in this order: the text BPE ranks; end of text, im_start, im_end; 205 extras, of which four have a
meaning; three image marks; the visual codes. The published Emu3 has 151,643 ranks and 32,768 codes, 184,622
ids in all; the tiny models of `shapes` have fewer of both and the same order, so nothing else differs.
No framework is imported here: samplers, trainers and servers all ask this file.

An image block is `boi`, the text "H*W", `img`, H rows of W codes each closed by `eol`, then `eof`, `eoi`; `eos`
ends the completion. Once `boi` is there the grid of the source image fixes everything but the codes, so each position
has either a single legal id (forced: no choice, no gradient, log-probability 0) or all visual codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXTRAS = 205

THINK_TOKENS = 3000
"""Longest chain of thought where nobody says otherwise. Published: 3,000 new tokens for chain and image together, of
which a 32x32 grid takes 1,066. Chains are cut at 1,750 characters in training, which are 300 to 1,750 tokens: a figure
is a token of its own, so lists of boxes are the longest."""


@dataclass(frozen=True)
class TokenLayout:
    """Token ids of an Emu3-shaped vocabulary.

    text_ranks: number of text BPE ranks. codebook_size: number of visual codes.
    """

    text_ranks: int = 151_643
    codebook_size: int = 32_768

    @property
    def pad(self) -> int:
        """`<|endoftext|>`"""
        return self.text_ranks

    @property
    def _extra_0(self) -> int:
        return self.text_ranks + 3

    @property
    def eol(self) -> int:
        """End of a row of visual tokens, `<|extra_200|>`."""
        return self._extra_0 + 200

    @property
    def eof(self) -> int:
        """End of the frame, `<|extra_201|>`."""
        return self._extra_0 + 201

    @property
    def bos(self) -> int:
        """`<|extra_203|>`"""
        return self._extra_0 + 203

    @property
    def eos(self) -> int:
        """`<|extra_204|>`"""
        return self._extra_0 + 204

    @property
    def img(self) -> int:
        """Visual tokens follow, `<|image token|>`."""
        return self._extra_0 + EXTRAS

    @property
    def boi(self) -> int:
        """`<|image start|>`"""
        return self.img + 1

    @property
    def eoi(self) -> int:
        """`<|image end|>`"""
        return self.img + 2

    @property
    def first_code(self) -> int:
        """Id of visual code 0; code c has id `first_code + c`."""
        return self.img + 3

    @property
    def vocab_size(self) -> int:
        return self.first_code + self.codebook_size

    def special_forms(self) -> list[str]:
        """Surface forms of the ids from `pad` to `eoi`, in order. Visual codes have none here: they never pass
        through strings."""
        return [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            *(f"<|extra_{i}|>" for i in range(EXTRAS)),
            "<|image token|>",
            "<|image start|>",
            "<|image end|>",
        ]


@dataclass(frozen=True)
class GridGrammar:
    """The tokens that follow `boi` in a completion whose image has `height` x `width` codes.

    size_ids: token ids of the text "height*width". Offsets count from the first token after `boi`.
    """

    layout: TokenLayout
    height: int
    width: int
    size_ids: tuple[int, ...]

    @property
    def header_length(self) -> int:
        """Tokens of "H*W" and `img`."""
        return len(self.size_ids) + 1

    @property
    def length(self) -> int:
        """Tokens after `boi`, `eos` included."""
        return self.header_length + self.height * (self.width + 1) + 3

    def legal(self, offset: int) -> tuple[int, int]:
        """Half-open range (low, high) of the legal ids at `offset`; high - low is 1 where the token is forced.

        Raises IndexError outside 0 <= offset < length.
        """
        if not 0 <= offset < self.length:
            raise IndexError(f"offset {offset} is outside a completion of {self.length} tokens")
        token = self._forced(offset)
        if token is None:
            return self.layout.first_code, self.layout.vocab_size
        return token, token + 1

    def _forced(self, offset: int) -> int | None:
        if offset < len(self.size_ids):
            return self.size_ids[offset]
        if offset == len(self.size_ids):
            return self.layout.img
        cell = offset - self.header_length
        if cell < self.height * (self.width + 1):
            return self.layout.eol if cell % (self.width + 1) == self.width else None
        return (self.layout.eof, self.layout.eoi, self.layout.eos)[cell - self.height * (self.width + 1)]

    def free_offsets(self) -> list[int]:
        """Offsets of the height * width visual codes, in row order."""
        return [
            self.header_length + row * (self.width + 1) + column
            for row in range(self.height)
            for column in range(self.width)
        ]

    def completion(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """The `length` tokens that follow `boi` for a grid of codes, height rows of width integers, else ValueError."""
        widths = [len(row) for row in codes]
        if widths != [self.width] * self.height:
            raise ValueError(f"expected {self.height} rows of {self.width} codes, got rows of {widths}")
        tokens = [*self.size_ids, self.layout.img]
        for row in codes:
            tokens += [self.layout.first_code + int(code) for code in row]
            tokens.append(self.layout.eol)
        return [*tokens, self.layout.eof, self.layout.eoi, self.layout.eos]

    def codes(self, completion: Sequence[int]) -> list[list[int]]:
        """The grid of codes in the tokens that follow `boi`. Raises ValueError if they break the grammar."""
        if len(completion) != self.length:
            raise ValueError(f"a {self.height}x{self.width} grid has {self.length} tokens, got {len(completion)}")
        first = self.layout.first_code
        starts = range(self.header_length, self.length - 3, self.width + 1)
        grid = [[token - first for token in completion[start : start + self.width]] for start in starts]
        in_codebook = all(min(row) >= 0 and max(row) < self.layout.codebook_size for row in grid)
        if not in_codebook or self.completion(grid) != list(completion):
            raise ValueError(self._fault(completion))
        return grid

    def _fault(self, completion: Sequence[int]) -> str:
        """The first token that breaks the grammar."""
        for offset, token in enumerate(completion):
            low, high = self.legal(offset)
            if not low <= token < high:
                return f"token {token} at offset {offset} is outside the legal range [{low}, {high})"
        raise AssertionError("the completion keeps the grammar")
