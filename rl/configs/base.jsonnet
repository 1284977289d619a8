// The paper's RL set-up. A run's own file adds `model` and `data`, see sft_s__rl_sc.jsonnet.
{
  run_name: std.extVar('APP__RUN_NAME'),
  output_dir: std.extVar('APP__BASE_EXP_DIR'),
  vision: 'BAAI/Emu3-VisionTokenizer',
  tokenizer: 'BAAI/Emu3-Gen',
  steps: 2000,
  save_every: 100,
  rollout: { prompts_per_step: 16, group_size: 8, temperature: 1.0 },
  objective: { kl: 3e-4 },
  optimizer: { lr: 3e-6, beta1: 0.9, beta2: 0.999, weight_decay: 0.0, max_grad_norm: 1.0 },
  judge: {
    base_url: std.extVar('APP__REWARD_FUNCTION_API_BASE'),
    temperature: null,
  },
  compute: { precision: 'bf16', attention: 'sdpa', micro_batch: 8 },
}
