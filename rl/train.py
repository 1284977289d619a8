"""GRPO on image edits: the whole step, top to bottom.

    python -m rl.train CONFIG.jsonnet [key=value ...]                             one process
    torchrun --nproc_per_node N -m rl.train CONFIG.jsonnet [key=value ...]        N ranks share each step's prompts

A step: sample G completions per prompt under the grid grammar; decode each group and hand it to the judge while the
next ones are sampled and the reference reads them all; turn scores into advantages; take one optimizer step (or
`objective.updates`, `rl.update`) on the summed token losses. Each random number is a function of (seed, step, prompt,
sample), so neither the micro-batch size nor the number of ranks changes what is computed. With `rollout.ahead` the next
step is sampled before this one is trained, so that the judge has a whole step's time. Where the weights live, whole or
sharded, with LoRA or without, is `rl.training`'s; who samples, `rl.rollout`'s. Left out: samplers on other machines.

Axes on names: P prompts of this rank, G rollouts of a group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
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
from emu3.files import remove_leftovers
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.language_model import read_config
from emu3.mllm.product import check_product, say_faster
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
from rl.config import Config
from rl.config_file import inputs_of, load_config, record_config, train_arguments
from rl.losses import constant_groups, group_advantages, objective_of
from rl.prompts import Prompts
from rl.reward.counters import judge_metrics
from rl.reward.scorer import Scorer
from rl.reward.scores import Outcome, Score
from rl.rollout.engine import Prompt, make_engine
from rl.scoring import Episode, collect, needs_targets, start_scorer, submit_group
from rl.training.policy import make_trainer, precision
from rl.update import PolicyUpdate, Row
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
    check_product("compute.product=", config.compute.product, device)
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
        targets=needs_targets(config.reward),
    )
    least_known = config.objective.least_known(group_size)
    longest = config.rollout.think_tokens + prompts.largest_grid
    vision = all_ranks.on_first(partial(weights_digest, config.vision))
    check_alike(prompts.sets, {"vision_sha256": vision})
    objective = f"grpo: {config.objective.name}"
    folders = [rows.folder for rows in prompts.sets]
    facts = all_ranks.on_first(partial(trained_facts, config.model, folders, objective, config.vision))
    announce(config, accelerator, codec.vq, prompts.take(0, prompts_per_step))
    start, position = (resumed.step, resumed.prompt_position) if resumed else (0, 0)
    for folder in (run, run / "checkpoints"):  # each leftover is as large as a checkpoint
        all_ranks.on_first(partial(remove_leftovers, folder))
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
    checkpoints = checkpoint.Checkpoints(run, trainer, tokenizer, config, facts, saved=start)
    update = PolicyUpdate(config, accelerator, trainer, reference, longest)

    def groups(step: int, position: int, first: int, count: int) -> list[tuple[Prompt, list[tuple[int, ...]]]]:
        """This rank's share of a step's prompts from place `first` on, `count` of them over all ranks, each with the
        seeds of its group."""
        taken = prompts.take(position, count)
        return [
            (taken[index], [(config.seed, step, first + index, sample) for sample in range(group_size)])
            for index in range(rank, count, ranks)
        ]

    def sample(step: int, position: int, first: int, count: int) -> list[Episode]:
        """This rank's rollouts for `groups`; the judge works on one group while the next ones are sampled."""
        sampled: list[Episode] = []
        mine = groups(step, position, first, count)
        prompts_P, seeds_P_G = [prompt for prompt, _ in mine], [seeds for _, seeds in mine]
        with timer.phase("sample"), precision(config, device):
            try:
                for prompt, rollouts_G in zip(prompts_P, engine.sample(prompts_P, seeds_P_G), strict=True):
                    sampled += submit_group(scorer, codec, prompt, rollouts_G)
                    if stop.number:  # the ranks agree on it below
                        break
            except FloatingPointError as error:
                raise UserError(f"step {step}: {error}; start a new run with a lower optimizer.lr") from error
        return sampled

    def save(steps_done: int, *, at_once: bool = True) -> None:
        """Write a checkpoint. at_once: it is whole when this returns; else training may go on meanwhile."""
        rollouts = [episode.rollout for episode in early]
        own = {rank + ranks * n: rollouts[n * group_size :][:group_size] for n in range(len(rollouts) // group_size)}
        checkpoints.begin(steps_done, position, own)
        if at_once:
            checkpoints.finish()

    def end_if_asked(step: int) -> None:
        """Where `step` steps are done, and nothing of the next one that would change the state."""
        if number := stop.agreed():
            checkpoints.finish()
            if checkpoints.saved != step:
                save(step)
            if watch is not None:
                watch.close()
            end_run(run, number, f"the state after {checkpoints.saved} steps is saved")

    def wait(step: int, waiting: Callable[[], bool], seconds: float) -> None:
        """While `waiting` is true, `seconds` at most, but not once the run is asked to end."""
        end = time.monotonic() + seconds
        with timer.phase("judge"):
            while waiting() and not stop.number and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        end_if_asked(step)

    timer = Timer()
    recomputed = 0  # tokens that engines computed again for want of cache, over all ranks, since this start
    # Rollouts that were sampled for the present step before the update ahead of it, whose weights are gone since.
    early: list[Episode] = []
    if resumed is not None and (rollouts_by_place := resumed.ahead()):
        mine = zip(range(rank, prompts_per_step, ranks), groups(start, position, 0, prompts_per_step), strict=True)
        for place, (prompt, _) in mine:
            early += submit_group(scorer, codec, prompt, rollouts_by_place[place])
    for step in range(start, config.steps):
        end_if_asked(step)

        # Sample this rank's share. A further round, if the config has one, takes new prompts for those whose group
        # prefers nothing.
        episodes: list[Episode] = []  # of the groups that are kept, one group after the other
        rewards: list[Tensor] = []
        references: list[Tensor] = []  # of `episodes`, in the one round that most configs have
        judged: list[tuple[Episode, Outcome]] = []  # of all groups
        following: list[Episode] = []  # of the next step
        taken, missing, constant = 0, prompts_per_step, 0
        filler: Row | None = None
        for _ in range(config.rollout.rounds):
            sampled = early or sample(step, position + taken, taken, missing)
            end_if_asked(step)
            filler = filler or (sampled[0].prompt, sampled[0].rollout)  # the first round has prompts for every rank
            if config.rollout.ahead and step + 1 < config.steps:
                following = sample(step + 1, position + missing, 0, prompts_per_step)
                end_if_asked(step)
            if config.rollout.rounds == 1:  # while the judge works
                engine.sleep()
                with timer.phase("reference"):
                    references = update.reference_logprobs(rows_of(sampled), filler)
            with timer.phase("ranks") if ranks > 1 else nullcontext():
                outcomes = collect(
                    sampled, scorer, config.judge, accelerator, on_pause=partial(save, step), wait=partial(wait, step)
                )
            judged += zip(sampled, outcomes, strict=True)
            # What has no score is unknown, not bad: it is masked.
            values = [outcome.value if isinstance(outcome, Score) else torch.nan for outcome in outcomes]
            rewards_P_G = torch.tensor(values, dtype=torch.float64).view(-1, group_size)
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
        assert filler is not None
        advantages_P_G, trained_P_G = group_advantages(
            torch.stack(rewards) if rewards else torch.empty(0, group_size, dtype=torch.float64),
            drop_constant=config.objective.drop_constant,
            divide_by_std=config.objective.divide_by_std,
            min_known=least_known,
            min_std=config.objective.std_floor,
        )
        chosen = trained_P_G.flatten().nonzero().flatten().tolist()
        rows = rows_of(episodes[index] for index in chosen)
        if config.rollout.rounds == 1:
            references = [references[index] for index in chosen] if references else []
        else:
            engine.sleep()
            with timer.phase("reference"):
                references = update.reference_logprobs(rows, filler)
        with timer.phase("train"):
            lr = config.optimizer.lr * min(1.0, (step + 1) / max(1, config.optimizer.warmup_steps))
            trained = update(rows, references, advantages_P_G.flatten()[chosen].float(), lr, filler)
        with timer.phase("sync"):
            engine.sync()
        position += taken
        early = following

        # Show and save.
        own = [_for_the_log(episode, outcome) for episode, outcome in judged]
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
                **trained,
                "probe_gap": engine.probe_gap,
                "preempted_tokens": preempted,
                "lr": lr,
                "judge": judge,
                "seconds": timer.seconds,
            }
            watch.step(metrics, judged)
        timer = Timer()  # what a checkpoint is waited for counts for the step behind it, whose line is yet to come
        with timer.phase("checkpoint"):
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save(step + 1, at_once=step + 1 == config.steps)
            else:
                checkpoints.poll()

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


def _for_the_log(episode: Episode, outcome: Outcome) -> JudgedRollout:
    rollout = episode.rollout
    cut = None if rollout.reasoning is None else rollout.cut
    return JudgedRollout(episode.prompt.task, len(rollout.tokens), outcome, cut)


def rows_of(episodes: Iterable[Episode]) -> list[Row]:
    """What training needs of them."""
    return [(episode.prompt, episode.rollout) for episode in episodes]


def start_ranks(config: Config) -> Accelerator:
    """The process group, if the launcher has started several processes, with the run's timeout."""
    timeout = InitProcessGroupKwargs(timeout=timedelta(seconds=config.compute.timeout))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[timeout])


def main() -> None:
    arguments = train_arguments()
    config = load_config(arguments.config, arguments.overrides)
    objective_of(config.objective)  # one's own is tried before anything large is loaded
    if checkpoint.is_finished(config):
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{checkpoint.folder_of(config)}: all {config.steps} steps are done: nothing to do", flush=True)
        return
    accelerator = start_ranks(config)
    if accelerator.is_main_process and config.compute.precision == "fp32" and not config.compute.zero:
        say_faster("compute.product=", config.compute.product, accelerator.device)
    with start_scorer(config.judge, accelerator.process_index, config.reward) as scorer:
        codec = ImageCodec(StillVQ.from_pretrained(config.vision), accelerator.device)
        train(config, accelerator, codec, scorer)
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main)
