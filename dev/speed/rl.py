"""What a GRPO step saves, each against the plain way to the same numbers; part of `scripts/speed.sh`.

The shape has prompt and completion of about one length and 8 completions per prompt, as at full size; the network is
small.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import Emu3ForCausalLM

from dev.speed.measure import Speed, machine, peaks, record, seconds, table
from emu3.errors import run_main
from emu3.mllm.generate import Completion, Request, generate
from emu3.mllm.head import chosen_logprobs
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.product import can_multiply, use_product
from emu3.settings import Product
from emu3.train_image_editing.objective import TargetLosses
from rl.logprobs import pack, scored_positions, token_logprobs
from rl.rollout.engine import Prompt, Rollout
from rl.shared_prefix import ATTENTION

GROUP = 8
GRID = (16, 16)
LAYOUT = TokenLayout(text_ranks=300, codebook_size=2048)
FULL = TokenLayout()
HEAD_TOKENS, HEAD_WIDTH = 1024, 64

Work = Callable[[], None]


def _model() -> Emu3ForCausalLM:
    return new_language_model(
        LAYOUT, hidden_size=256, layers=4, heads=4, kv_heads=4, ffn_size=1024, max_positions=1024, seed=0
    )


def _requests(prompts: int) -> list[Request]:
    rng = np.random.default_rng(0)
    grammar = GridGrammar(LAYOUT, *GRID, size_ids=(1, 2, 3))
    source = grammar.completion(rng.integers(0, LAYOUT.codebook_size, GRID).tolist())
    return [
        Request((LAYOUT.bos, LAYOUT.boi, *source[:-1], *range(20)), grammar, tuple((i, g) for g in range(GROUP)))
        for i in range(prompts)
    ]


def _rows() -> list[tuple[Prompt, Rollout]]:
    """One group with random completions."""
    [request] = _requests(1)
    rng = np.random.default_rng(1)
    prompt = Prompt("0", request.prompt, request.grammar, np.zeros(GRID, np.uint16), "", None)
    grids = rng.integers(0, LAYOUT.codebook_size, (GROUP, *GRID))
    completions = [[LAYOUT.boi, *request.grammar.completion(grid.tolist())] for grid in grids]
    nothing = np.zeros(len(completions[0]), np.float32)
    return [
        (prompt, Rollout(tokens, nothing, grid.astype(np.uint16), None))
        for tokens, grid in zip(completions, grids, strict=True)
    ]


def train_ways() -> tuple[Work, Work]:
    """Forward and backward of a group, its prompt once, and its prompt once per completion."""
    model, rows = _model(), _rows()
    model.set_attn_implementation(ATTENTION)
    batch = pack(rows, "grammar", 0)
    codes, _ = scored_positions(*rows[0], "grammar", 0)
    places = torch.from_numpy(len(rows[0][0].ids) + codes - 1)

    def ours() -> None:
        model.zero_grad()
        token_logprobs(model, batch, 1.0)[0].sum().backward()

    def plain() -> None:
        """All completions in one batch, each behind its own copy of the prompt; the head for scored tokens alone."""
        model.zero_grad()
        ids = torch.tensor([[*prompt.ids, *rollout.tokens] for prompt, rollout in rows])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, places].flatten(0, 1)
        head = model.lm_head.weight[LAYOUT.first_code : LAYOUT.vocab_size]
        chosen_logprobs(hidden, head, batch.target_N, 1.0)[0].sum().backward()

    return ours, plain


def train(turns: int) -> list[Speed]:
    """Time and memory of a training step's pass over one group."""
    peer_is = f"the prompt once per completion, {GROUP} completions"
    return [
        Speed("train_shared_prefix", *seconds(*train_ways(), turns), "s", 1.6, peer_is),
        Speed("train_memory", *peaks(train_ways), "MB", None, peer_is),
    ]


def sample_shared_prompt(turns: int) -> Speed:
    """Sampling a group, its prompt once, against its prompt once per completion."""
    model = _model()
    requests = _requests(2)

    def sample(share: bool) -> list[list[Completion]]:
        return generate(model, LAYOUT, requests, share_prompt=share)

    ours_s, peer_s = seconds(partial(sample, True), partial(sample, False), turns)
    return Speed(
        "sample_shared_prompt", ours_s, peer_s, "s", 1.3, f"the prompt once per completion, {GROUP} completions"
    )


def head_ways() -> tuple[Work, Work]:
    """Log-probabilities of codes and their gradient, at the real vocabulary and a small width: among the legal ids, a
    chunk at a time, and with all logits of all ids, the illegal ones masked."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(HEAD_TOKENS, HEAD_WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(FULL.vocab_size, HEAD_WIDTH, generator=generator, requires_grad=True)
    codes = torch.randint(FULL.codebook_size, (HEAD_TOKENS,), generator=generator)

    def ours() -> None:
        chosen_logprobs(hidden, weight[FULL.first_code :], codes, 1.0, chunk_bytes=2**24)[0].sum().backward()

    def peer() -> None:
        logits = hidden @ weight.T
        legal = torch.arange(FULL.first_code, FULL.vocab_size)
        logprobs = (logits + torch.full((FULL.vocab_size,), -torch.inf).index_fill_(0, legal, 0.0)).log_softmax(-1)
        logprobs.gather(-1, (codes + FULL.first_code)[:, None]).sum().backward()

    return ours, peer


def head(turns: int) -> list[Speed]:
    """Time and memory of the scored head at the real vocabulary."""
    peer_is = f"log-softmax over {FULL.vocab_size} ids, {HEAD_TOKENS} tokens"
    return [
        Speed("head_time", *seconds(*head_ways(), turns), "s", 2.0, peer_is),
        Speed("head_memory", *peaks(head_ways), "MB", 5.0, peer_is),
    ]


def grammar(turns: int) -> Speed:
    """Which ids are legal at each token of a completion, against a list of them compared with the previous one, as the
    published mask does."""
    rule = GridGrammar(FULL, 32, 32, size_ids=(1, 2, 3, 4, 5))
    codes = list(range(FULL.first_code, FULL.vocab_size))

    def ours() -> None:
        for offset in range(rule.length):
            rule.legal(offset)

    def peer() -> None:
        previous: list[int] = []
        for offset in range(rule.length):
            low, high = rule.legal(offset)
            legal = codes if high - low > 1 else [low]
            if list(legal) != previous:
                previous = list(legal)

    ours_s, peer_s = seconds(ours, peer, turns)
    each = 1e6 / rule.length
    return Speed("grammar", ours_s * each, peer_s * each, "us/token", 50.0, "comparing lists of 32,768 ids per token")


def products(turns: int) -> list[Speed]:
    """A step of fine-tuning of the quickstart's model on 16 rows of 78 tokens, with each fast product of linear layers
    that this processor has; one thread, seconds of the processor."""
    layout = TokenLayout(text_ranks=495, codebook_size=291)
    ids = torch.randint(0, layout.vocab_size, (16, 79), generator=torch.Generator().manual_seed(0))

    def step(product: Product) -> Work:
        sizes = {"hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 4, "ffn_size": 384, "max_positions": 512}
        model = new_language_model(layout, **sizes, attention_bias=True, tie_embeddings=True, seed=0).train()
        use_product(model, product)
        losses, optimizer = TargetLosses(model), torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

        def work() -> None:
            losses(ids[:, :-1], ids[:, 40:]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return work

    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    goals: dict[Product, float | None] = {"onednn": None, "bf16": 1.15}
    for product, goal in goals.items():
        if can_multiply(product):
            times = seconds(step(product), step("plain"), 4 * turns, time.process_time)
            found.append(
                Speed(f"sft_step_{product}", *times, "s", goal, "the plain product; width 128, 16 x 78 tokens")
            )
    torch.set_num_threads(threads)
    return found


def judge_overlap(turns: int) -> Speed:
    """A step's sampling and judging, with a judge as slow as the sampler, against the longer of the two."""
    model, prompts = _model(), 16
    requests = [Request(request.prompt[:40], request.grammar, request.seeds) for request in _requests(prompts)]

    def sampling(judge: Callable[[], Future[None]] | None) -> list[Future[None]]:
        waiting = []
        for request in requests:
            generate(model, LAYOUT, [request])
            if judge is not None:
                waiting += [judge() for _ in range(GROUP)]
        return waiting

    start = time.perf_counter()
    sampling(None)
    alone = time.perf_counter() - start
    with ThreadPoolExecutor(GROUP) as pool:
        judge = partial(pool.submit, time.sleep, alone / prompts)

        def both() -> None:
            for reply in sampling(judge):
                reply.result()

        both_s, alone_s = seconds(both, lambda: sampling(None), turns)
    return Speed("judge_overlap", both_s, max(alone_s, alone), "s", 1 / 1.15, "the longer of sampling and judging")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dev.speed.rl", description="Measure the speed of the RL step's parts."
    )
    parser.add_argument("--output", type=Path, default=Path("speed.json"), help="list to add to (default: speed.json)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each (default: 5)")
    options = parser.parse_args()
    results = [
        *train(options.turns),
        sample_shared_prompt(options.turns),
        *head(options.turns),
        grammar(options.turns),
        *products(options.turns),
        judge_overlap(options.turns),
    ]
    record(results, options.output, machine())
    print(table(results))


if __name__ == "__main__":
    run_main(main)
