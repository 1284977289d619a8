// The paper's RL set-up on one node of 4 GPUs with 80 GB. A run adds `model` and `data`, see sft_s__rl_sc.jsonnet;
// rl/README.md has the published keys beside these.
{
  run_name: std.extVar('APP__RUN_NAME'),
  output_dir: std.extVar('APP__BASE_EXP_DIR'),
  vision: 'BAAI/Emu3-VisionTokenizer',
  tokenizer: 'BAAI/Emu3-Gen',
  steps: 2000,
  save_every: 100,
  rollout: {
    prompts_per_step: 16,
    group_size: 8,
    temperature: 1.0,
    engine: 'vllm',
    // 24 GB of 80: 17 of weights, 5.4 of keys and values, which a step's 32 completions fill. The trainer holds 44 meanwhile,
    // and 3 while images are decoded.
    vllm: { memory_share: 0.3 },
  },
  objective: { kl: 3e-4 },
  optimizer: { lr: 3e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 },
  judge: {
    base_url: std.extVar('APP__REWARD_FUNCTION_API_BASE'),
    model: 'Qwen/Qwen2.5-VL-72B-Instruct',
    concurrency: 64,
    max_tokens: 1400,
  },
  // Per GPU 17 GB of weights and 25 of optimizer; the reference, 17 more, comes in when vLLM sleeps.
  // `python -m rl.watch.estimate` counts it all.
  compute: {
    precision: 'bf16',
    micro_batch: 8,
    zero: 2,
    gradient_checkpointing: true,
    reference: 'offloaded',
  },
}
