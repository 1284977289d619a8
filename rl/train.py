"""GRPO on image edits: the whole step, top to bottom.

    python -m rl.train CONFIG.jsonnet [key=value ...]                             one process
    torchrun --nproc_per_node N -m rl.train CONFIG.jsonnet [key=value ...]        N ranks share each step's prompts

A step: sample G completions per prompt under the grid grammar; decode each group and hand it to the judge while the
next ones are sampled; turn scores into advantages; take one optimizer step (or `objective.updates`) on the summed
token losses. Gradients are sums over micro-batches and ranks with one common denominator, and each random number
is a function of (seed, step, prompt, sample), so neither the micro-batch size nor the number of ranks changes what
is computed. Where the weights live, whole or sharded, with LoRA or without, is `rl.training`'s; who samples,
`rl.rollout`'s. Left out: samplers on other machines.

Axes on names: P prompts of this rank, G rollouts of a group, N scored tokens of a micro-batch, flat.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from emu3.checkpoint_facts import trained_facts
from emu3.errors import UserError, one_line, run_main
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.language_model import read_config
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.mllm.vllm.llm_engine import check_installed
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.shards import check_alike
from emu3.training import ranks as all_ranks
from emu3.training.checkpoints import checkpoint_bytes, save_time
from emu3.training.ranks import Stopping, end_run, stopping
from emu3.training.state import WRITE_ERRORS
from rl import checkpoint
from rl.config import Config, ObjectiveConfig
from rl.config_file import inputs_of, load_config, record_config
from rl.logprobs import Batch, pack
from rl.losses import OBJECTIVES, Tokens, Totals, constant_groups, group_advantages, k3, outside_clip
from rl.prompts import Prompts
from rl.reward.counters import judge_metrics
from rl.reward.scorer import Scorer
from rl.reward.scores import Outcome, Score
from rl.rollout.engine import Prompt, Rollout, make_engine
from rl.scoring import Episode, collect, start_scorer, submit_group
from rl.training.policy import Reference, Trainer, make_trainer, precision
from rl.watch.estimate import announce
from rl.watch.watch import JudgedRollout, Timer, Watch, reward_metrics

POLL_SECONDS = 0.02


def train(config: Config, accelerator: Accelerator, codec: ImageCodec, scorer: Scorer) -> None:
    """Run or continue a run; leaves checkpoints, `metrics.jsonl` and the model `final` in its folder.

    Ends by SystemExit, with its state saved, when it is asked to by a signal (`emu3.training.ranks`).
    """
    run = checkpoint.folder_of(config)
    with all_ranks.owned_by_first(run), stopping() as stop:
        _train(config, run, accelerator, codec, scorer, stop)


def _train(
    config: Config, run: Path, accelerator: Accelerator, codec: ImageCodec, scorer: Scorer, stop: Stopping
) -> None:
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    prompts_per_step, group_size = config.rollout.prompts_per_step, config.rollout.group_size
    if prompts_per_step < ranks:
        raise UserError(f"rollout.prompts_per_step={prompts_per_step} is too few for {ranks} ranks")
    if config.rollout.engine == "vllm":
        check_installed()

    resumed = all_ranks.on_first(partial(checkpoint.newest, run))
    tokenizer = TextTokenizer.from_pretrained(config.tokenizer or config.model)
    if codec.vq.config.codebook_size != tokenizer.layout.codebook_size:
        raise UserError(
            f"{config.vision} has {codec.vq.config.codebook_size} codes, the language model's vocabulary "
            f"{tokenizer.layout.codebook_size}: they do not belong together"
        )
    prompts = Prompts(
        config.data,
        tokenizer,
        read_config(local_folder(config.model, SMALL_FILES) / "config.json").language_model.max_position_embeddings,
        config.rollout.think_tokens,
        config.seed,
        targets=config.reward.groundscore > 0,
    )
    least_known = config.objective.least_known(group_size)
    longest = config.rollout.think_tokens + prompts.largest_grid
    vision = all_ranks.on_first(partial(weights_digest, config.vision))
    check_alike(prompts.sets, {"vision_sha256": vision})
    objective = f"grpo: {config.objective.preset}"
    facts = all_ranks.on_first(partial(trained_facts, config.model, config.data.sets, objective, config.vision))
    announce(config, accelerator, codec.vq, prompts.take(0, prompts_per_step))
    start, position = (resumed.step, resumed.prompt_position) if resumed else (0, 0)
    all_ranks.on_first(partial(checkpoint.remove_leftovers, run))
    inputs = all_ranks.on_first(partial(inputs_of, config, facts, scorer.judge_name))
    all_ranks.on_first(partial(record_config, config, run / "config.json", inputs=inputs, resuming=resumed is not None))
    watch = Watch(run, config, start) if accelerator.is_main_process else None
    trainer, reference = make_trainer(config, accelerator, resumed.folder if resumed else None)
    engine = make_engine(config, trainer, tokenizer, device)
    all_ranks.set_device_timeout(timedelta(seconds=config.compute.timeout))
    accelerator.print(f"{run}: step {start} of {config.steps}; {prompts.dropped} rows too long, left out", flush=True)
    size = checkpoint_bytes(trainer.model, sharded=config.compute.zero > 0)
    if (line := all_ranks.on_first(partial(save_time, run, size))) is not None:
        accelerator.print(line, flush=True)
    saved = start

    def end_if_asked(step: int) -> None:
        """Where `step` steps are done, and nothing of the next one that would change the state."""
        if number := stop.agreed():
            if saved != step:
                save(step)
            if watch is not None:
                watch.close()
            end_run(run, number, f"the state after {saved} steps is saved")

    def wait(step: int, waiting: Callable[[], bool], seconds: float) -> None:
        """While `waiting` is true, `seconds` at most, but not once the run is asked to end."""
        end = time.monotonic() + seconds
        while waiting() and not stop.number and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        end_if_asked(step)

    def save(steps_done: int) -> None:
        nonlocal saved
        try:
            checkpoint.save(run, steps_done, position, trainer, tokenizer, config, facts)
            saved = steps_done
        except WRITE_ERRORS as error:
            accelerator.print(
                f"no checkpoint of step {steps_done}: {one_line(error)}; the run goes on without", flush=True
            )
        all_ranks.meet()

    recomputed = 0  # tokens that engines computed again for want of cache, over all ranks, since this start
    for step in range(start, config.steps):
        end_if_asked(step)
        timer = Timer()

        # Sample this rank's share; the judge works on a group while the next ones are sampled. A further round, if the
        # config has one, takes new prompts for those whose group prefers nothing.
        episodes: list[Episode] = []  # of the groups that are kept, one group after the other
        rewards: list[Tensor] = []
        judged: list[tuple[Episode, Outcome]] = []  # of all groups
        taken, missing, constant = 0, prompts_per_step, 0
        filler: tuple[Prompt, Rollout] | None = None
        for _ in range(config.rollout.rounds):
            mine = range(rank, missing, ranks)
            step_prompts = prompts.take(position + taken, missing)
            prompts_P = [step_prompts[index] for index in mine]
            seeds_P_G = [[(config.seed, step, taken + index, sample) for sample in range(group_size)] for index in mine]
            sampled: list[Episode] = []
            with timer.phase("sample"), precision(config, device):
                try:
                    for prompt, rollouts_G in zip(prompts_P, engine.sample(prompts_P, seeds_P_G), strict=True):
                        sampled += submit_group(scorer, codec, prompt, rollouts_G)
                        if stop.number:  # the ranks agree on it below
                            break
                except FloatingPointError as error:
                    raise UserError(f"step {step}: {error}; start a new run with a lower optimizer.lr") from error
            end_if_asked(step)
            with timer.phase("judge"):
                outcomes = collect(
                    sampled, scorer, config.judge, accelerator, on_pause=partial(save, step), wait=partial(wait, step)
                )
            filler = filler or (sampled[0].prompt, sampled[0].rollout)  # the first round has prompts for every rank
            judged += zip(sampled, outcomes, strict=True)
            # What has no score is unknown, not bad: it is masked.
            values = [outcome.value if isinstance(outcome, Score) else torch.nan for outcome in outcomes]
            rewards_P_G = torch.tensor(values, dtype=torch.float64).view(len(prompts_P), group_size)
            constant_P = constant_groups(rewards_P_G, least_known)
            for group, is_constant in enumerate(constant_P.tolist()):
                if config.rollout.rounds == 1 or not is_constant:
                    episodes += sampled[group * group_size : (group + 1) * group_size]
                    rewards.append(rewards_P_G[group])
            counts = torch.tensor([len(rewards), constant_P.sum()], device=device)
            kept, constant_here = accelerator.reduce(counts, reduction="sum").tolist()
            taken, missing, constant = taken + missing, prompts_per_step - kept, constant + constant_here
            if not missing:
                break

        end_if_asked(step)

        # Scores to advantages, and one optimizer step (or `objective.updates`) on what is left.
        engine.sleep()
        with timer.phase("train"):
            lr = config.optimizer.lr * min(1.0, (step + 1) / max(1, config.optimizer.warmup_steps))
            advantages_P_G, trained_P_G = group_advantages(
                torch.stack(rewards) if rewards else torch.empty(0, group_size, dtype=torch.float64),
                drop_constant=config.objective.drop_constant,
                divide_by_std=config.objective.divide_by_std,
                min_known=least_known,
                min_std=config.objective.std_floor,
            )
            chosen = trained_P_G.flatten().nonzero().flatten().tolist()
            rows = [(episodes[index].prompt, episodes[index].rollout) for index in chosen]
            advantages = advantages_P_G.flatten()[chosen].float()
            assert filler is not None
            update = _update(config, accelerator, trainer, reference, rows, advantages, longest, lr, filler, timer)
        with timer.phase("sync"):
            engine.sync()
        position += taken

        # Show and save.
        own = [JudgedRollout(episode.prompt.task, len(episode.rollout.tokens), outcome) for episode, outcome in judged]
        counted = [one for part in all_ranks.gather(own) for one in part]
        preempted = sum(all_ranks.gather(engine.preempted[1])) - recomputed
        recomputed += preempted
        judge = judge_metrics(all_ranks.gather(scorer.step()), all_ranks.gather(timer.seconds["judge"]))
        if watch is not None:
            metrics = {
                "step": step,
                **reward_metrics(counted),
                "constant_share": constant / taken,
                "prompts": taken,
                **update,
                "probe_gap": engine.probe_gap,
                "preempted_tokens": preempted,
                "lr": lr,
                "judge": judge,
                "seconds": timer.seconds,
            }
            watch.step(metrics, judged)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save(step + 1)

    if watch is not None:
        watch.close()
    try:
        final = run / "final" if accelerator.is_main_process else None
        checkpoint.save_model(final, trainer, tokenizer, replace(facts, steps=config.steps))
        all_ranks.on_first(partial(checkpoint.note_finished, run, config.steps))
    except WRITE_ERRORS as error:
        raise UserError(
            f"{run / 'final'} was not written: {one_line(error)}; then start the same command again"
        ) from error
    all_ranks.meet()


def _update(
    config: Config,
    accelerator: Accelerator,
    trainer: Trainer,
    reference: Reference | None,
    rows: list[tuple[Prompt, Rollout]],
    advantages: Tensor,
    longest: int,
    lr: float,
    filler: tuple[Prompt, Rollout],
    timer: Timer,
) -> dict[str, float | None]:
    """Train on this rank's rollouts, one advantage each. The metrics are those of the first optimizer step,
    but for `clip_share`: that of the last. longest: scored tokens of a completion at most. filler: any rollout, for
    passes that only keep step with other ranks."""
    objective, device = config.objective, accelerator.device
    size = config.compute.micro_batch
    batches: list[Batch] = []
    advantages_N: list[Tensor] = []
    for start in range(0, len(rows), size):
        batch = pack(rows[start : start + size], objective.scheme, config.rollout.think_tokens, device)
        batches.append(batch)
        advantages_N.append(advantages[start : start + size].to(device)[batch.row_N])
    # Scored tokens of each token's completion.
    lengths_N = [torch.bincount(batch.row_N)[batch.row_N] for batch in batches]
    own = [sum(map(len, advantages_N)), sum(batch.codes for batch in batches), len(rows)]
    own_counts = torch.tensor(own, device=device)
    tokens, codes, completions = accelerator.reduce(own_counts, reduction="sum").tolist()
    if tokens == 0:  # no group prefers anything; a step would only follow the optimizer's old momentum
        entropies = ("entropy", "entropy_codes", "entropy_text")
        unknown = ("loss", "kl", *entropies, "logprob_gap", "mismatch_kl", "clip_share", "grad_norm")
        return {**dict.fromkeys(unknown), "trained_tokens": 0}
    totals = Totals(
        tokens=tokens,
        completions=completions,
        longest=longest,
        rank_tokens=own_counts[0].item() * accelerator.num_processes,
    )

    trained = len(batches)
    if trainer.lockstep:
        passes = accelerator.gather(torch.tensor([trained], device=device)).max().item()
        batches += [pack([filler], objective.scheme, config.rollout.think_tokens, device)] * (passes - trained)
    references: Sequence[Tensor | None] = [None] * len(batches)
    if reference is not None:
        with timer.phase("reference"):
            references = reference.logprobs(batches)
    old: list[Tensor] = []
    metrics: dict[str, float | None] = {}
    for update in range(objective.updates):
        sums = torch.zeros(7, device=device)
        for index, batch in enumerate(batches):
            logprobs_N, entropy_N = trainer.score(batch)
            last = index + 1 == len(batches)
            if index >= trained:
                trainer.backward(0 * logprobs_N.sum(), last=last)
                continue
            if update == 0:
                old.append(logprobs_N.detach())
            part = Tokens(
                logprobs_N, old[index], batch.sampled_N, references[index], advantages_N[index], lengths_N[index]
            )
            loss = OBJECTIVES[objective.preset](part, totals, objective)
            trainer.backward(loss, last=last)
            sums += _sums(loss, part, entropy_N, batch.codes, objective)
        norm = trainer.step(lr)
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient's norm is {norm}: the run diverged; start a new one with a lower optimizer.lr"
            )
        loss_sum, kl_sum, code_entropy, text_entropy, gap_sum, mismatch_sum, clipped = accelerator.reduce(
            sums, reduction="sum"
        ).tolist()
        if update == 0:
            metrics = {
                "loss": loss_sum,
                "kl": kl_sum / tokens if reference is not None else None,
                "entropy": (code_entropy + text_entropy) / tokens,
                "entropy_codes": code_entropy / codes,
                "entropy_text": text_entropy / (tokens - codes) if tokens > codes else None,
                "logprob_gap": gap_sum / codes,
                "mismatch_kl": mismatch_sum / codes,
                "grad_norm": norm,
                "trained_tokens": tokens,
            }
            if gap_sum / codes > config.compute.max_logprob_gap:
                raise UserError(
                    f"sampler and trainer differ by {gap_sum / codes:.3f} nats per token, more than "
                    f"compute.max_logprob_gap={config.compute.max_logprob_gap}: they do not hold the same weights"
                )
        metrics["clip_share"] = clipped / tokens
    return metrics


@torch.no_grad()
def _sums(loss: Tensor, part: Tokens, entropy_N: Tensor, codes: int, objective: ObjectiveConfig) -> Tensor:
    """Over tokens, summed: loss, KL, entropy of codes, entropy of the others, distance to the sampler's
    log-probabilities, KL from it, and how many ratios are outside the preset's clip: (7,)."""
    logprobs_N = part.logprobs_N
    kl_N = torch.zeros_like(logprobs_N) if part.reference_N is None else k3(logprobs_N, part.reference_N)
    # Over codes: what the paper's scheme scores besides, it scores under another distribution than the sampler.
    ours_N, sampled_N = logprobs_N[:codes], part.sampled_N[:codes]
    gap, mismatch = (ours_N - sampled_N).abs().sum(), k3(sampled_N, ours_N).sum()
    entropies = [entropy_N[:codes].sum(), entropy_N[codes:].sum()]
    return torch.stack([loss.detach(), kl_N.sum(), *entropies, gap, mismatch, outside_clip(part, objective).sum()])


def start_ranks(config: Config) -> Accelerator:
    """The process group, if the launcher has started several processes, with the run's timeout."""
    timeout = InitProcessGroupKwargs(timeout=timedelta(seconds=config.compute.timeout))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[timeout])


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO with a judge's score; see rl/README.md")
    parser.add_argument("config", type=Path, help="jsonnet file, for example rl/configs/shapes.jsonnet")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.lr=1e-5")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    if checkpoint.is_finished(config):
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{checkpoint.folder_of(config)}: all {config.steps} steps are done: nothing to do", flush=True)
        return
    accelerator = start_ranks(config)
    with start_scorer(config.judge, accelerator.process_index, config.reward) as scorer:
        codec = ImageCodec(StillVQ.from_pretrained(config.vision), accelerator.device)
        train(config, accelerator, codec, scorer)
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main)
