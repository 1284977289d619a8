"""What shows a training run to a person: table, metrics file, page, trackers. SFT and RL add what is their own."""
