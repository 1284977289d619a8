// Table 3: SFT think (S), RL (S+C).
(import 'base.libsonnet') + (import 'bases.libsonnet').sft_think_s + {
  data: (import 'data.libsonnet').sc,
}
