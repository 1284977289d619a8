// Table 2: SFT (S), RL (S+C), the best before scaling.
(import 'base.libsonnet') + (import 'unscaled.libsonnet') + (import 'bases.libsonnet').sft_s + {
  data: (import 'data.libsonnet').sc,
}
