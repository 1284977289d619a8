"""Every stage, killed and signalled at random moments, beside a run that nobody disturbed: `python -m dev.kills`."""
