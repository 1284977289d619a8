// Table 2: SFT (S+C), RL (C).
(import 'base.libsonnet') + (import 'unscaled.libsonnet') + (import 'bases.libsonnet').sft_sc + {
  data: (import 'data.libsonnet').c,
}
