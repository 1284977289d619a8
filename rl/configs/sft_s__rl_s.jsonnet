(import 'base.jsonnet') + {
  model: 'mair-lab/sft-simple',
  data: (import 'data.libsonnet').s,
}
