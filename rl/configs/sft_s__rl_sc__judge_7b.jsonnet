// Table 6: SFT (S), RL (S+C) with the small judge.
(import 'sft_s__rl_sc.jsonnet') + { judge+: { model: 'Qwen/Qwen2.5-VL-7B-Instruct' } }
