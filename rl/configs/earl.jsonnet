// Table 2's last row, EARL: SFT (S), RL (S+C), scaled. A run of sft_s__rl_sc continues as this one.
(import 'sft_s__rl_sc.jsonnet') + { steps: 2000 }
