// GRPO in the embedded world of the quickstart, on CPU cores.
local root = std.extVar('APP__BASE_EXP_DIR');
{
  run_name: 'sft_s__rl_sc',
  output_dir: root,
  model: root + '/sft_s/final',
  vision: root + '/vision',
  data: { sets: [std.extVar('APP__DATA_DIR') + '/' + name for name in ['simple', 'complex']] },
  steps: 400,
  save_every: 50,
  rollout: { prompts_per_step: 16, group_size: 8 },
  objective: { kl: 0.02 },
  optimizer: { lr: 1.5e-4, warmup_steps: 10 },
  judge: { base_url: std.extVar('APP__REWARD_FUNCTION_API_BASE'), deadline: 60, pause_seconds: 5, pauses: 3 },
  compute: { micro_batch: 32, attention: 'sdpa' },
}
