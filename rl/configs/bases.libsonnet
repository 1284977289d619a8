// What RL starts from: the paper's supervised models. Any of them may be a folder instead: `model=runs/sft_sc/final`.
// The two that saw complex edits were published under the authors' working name only.
local plain(model) = { model: model };
local think(model) = plain(model) + {
  // Published: 2,048 new tokens, of which a 32x32 image takes 1,066. Chains were cut at 1,750 characters in training: 321
  // tokens of prose, 751 of prose with boxes; a list of boxes, 1,437, is cut here and counted (`cut_chains`). 3,000 as in
  // editing would take 135,000 tokens of keys and values, 89 GB in all, and more than double the time of a step.
  // 26 of 32 completions at once: what the cache holds if all of them are as long as they can be.
  rollout+: { think_tokens: 982, vllm+: { memory_share: 0.33, max_sequences: 26 } },
  compute+: { micro_batch: 4 },
};
{
  sft_s: plain('mair-lab/sft-simple'),
  sft_sc: plain('Image-editing/Emu3-Base-SFT-without_cot-May06_mixed_gc_lr1e-4-checkpoint-4800'),
  sft_sc2stage: plain('Image-editing/Emu3-Base-SFT-without_cot-May07_mixed_gc_post_lr1e-4-checkpoint-1200'),
  sft_think_s: think('mair-lab/sft-think-simple'),
}
