// The tokenized training sets and how often each is seen: about 50,000 rows of every complex set, 100,000 simple ones
// beside them.
local folder(name) = std.extVar('APP__DATA_DIR') + '/' + name + '/train';
local mix(parts) = {
  sets: [folder(part[0]) for part in parts],
  coefficients: [part[1] for part in parts],
};
local complex = [
  ['magic_brush', 6],
  ['aurora_ag', 6],
  ['aurora_kubric', 0.7],
  ['ss2', 1.55],
  ['vismin', 3.7],
  ['human-edit', 11],
];
{
  s: mix([['omniedit', 1]]),
  c: mix(complex),
  sc: mix([['omniedit', 0.13]] + complex),
}
