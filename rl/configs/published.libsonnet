// What the published code computes where it differs from the default. A file at the repository's root with
//
//   (import 'rl/configs/earl.jsonnet') + (import 'rl/configs/published.libsonnet')
//
// is such a run.
{
  objective+: { preset: 'paper' },
  judge+: { image_format: 'jpeg', temperature: null },
}
