// The length of Table 2's runs above its last row, as Figure 4 shows it; rl/README.md has the other readings.
{ steps: 1000 }
