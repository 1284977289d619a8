// Table 2: SFT (S), RL (C).
(import 'base.libsonnet') + (import 'unscaled.libsonnet') + (import 'bases.libsonnet').sft_s + {
  data: (import 'data.libsonnet').c,
}
