// Table 2: SFT (S), then SFT (C), then RL (S+C).
(import 'base.libsonnet') + (import 'unscaled.libsonnet') + (import 'bases.libsonnet').sft_sc2stage + {
  data: (import 'data.libsonnet').sc,
}
