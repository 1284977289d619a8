// Table 2: SFT (S), RL (S).
(import 'base.libsonnet') + (import 'unscaled.libsonnet') + (import 'bases.libsonnet').sft_s + {
  data: (import 'data.libsonnet').s,
}
