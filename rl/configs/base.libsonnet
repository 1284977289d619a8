// The paper's RL set-up on one node of 4 GPUs with 80 GB. A run adds `model` and `data`, see sft_s__rl_sc.jsonnet;
// rl/README.md has the published keys beside these. What is not here has its default (docs/config.md), which is the
// paper's: 2,000 steps of 16 prompts with 8 rollouts, a KL coefficient and a learning rate of 3e-4 and 3e-6.
{
  run_name: std.extVar('APP__RUN_NAME'),
  output_dir: std.extVar('APP__BASE_EXP_DIR'),
  vision: 'BAAI/Emu3-VisionTokenizer',
  tokenizer: 'BAAI/Emu3-Gen',
  rollout: {
    engine: 'vllm',
    // 24 GB of 80: 17 of weights, 5.4 of keys and values, which a step's 32 completions fill. The trainer holds 44 meanwhile,
    // and 3 while images are decoded.
    vllm: { memory_share: 0.3 },
  },
  judge: {
    base_url: std.extVar('APP__REWARD_FUNCTION_API_BASE'),
    model: 'Qwen/Qwen2.5-VL-72B-Instruct',
  },
  // Per GPU 17 GB of weights and 25 of optimizer; the reference, 17 more, comes in when vLLM sleeps.
  // `python -m rl.watch.estimate` counts it all.
  compute: {
    precision: 'bf16',
    zero: 2,
    gradient_checkpointing: true,
    reference: 'offloaded',
  },
}
