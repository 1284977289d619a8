// What RL starts from: the paper's supervised models. Any of them may be a folder instead: `model=runs/sft_sc/final`.
// The two that saw complex edits were published under the authors' working name only.
local plain(model) = { model: model };
local think(model) = plain(model) + {
  // Their chains were cut at 1,750 characters in training, which is below 512 tokens.
  // They add 16,000 tokens of keys and values on each of 4 GPUs.
  rollout+: { think_tokens: 512, vllm+: { memory_share: 0.33 } },
  compute+: { micro_batch: 4 },
};
{
  sft_s: plain('mair-lab/sft-simple'),
  sft_sc: plain('Image-editing/Emu3-Base-SFT-without_cot-May06_mixed_gc_lr1e-4-checkpoint-4800'),
  sft_sc2stage: plain('Image-editing/Emu3-Base-SFT-without_cot-May07_mixed_gc_post_lr1e-4-checkpoint-1200'),
  sft_think_s: think('mair-lab/sft-think-simple'),
}
