"""Which token id means what, in one place and in plain integers.

Ids stand in this order: the text BPE ranks; end of text, im_start, im_end; 205 extras, of which four have a
meaning; three image marks; the visual codes. The published Emu3 has 151,643 ranks and 32,768 codes, 184,622
ids in all; the tiny models of `shapes` have fewer of both and the same order, so nothing else differs.
No framework is imported here: samplers, trainers and servers all ask this file.
"""

from __future__ import annotations

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
