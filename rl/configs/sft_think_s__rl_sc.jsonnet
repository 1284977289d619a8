(import 'base.jsonnet') + {
  model: 'mair-lab/sft-think-simple',
  data: (import 'data.libsonnet').sc,
  rollout+: { think_tokens: 512 },
}
