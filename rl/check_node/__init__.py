"""A machine checked before it is used: one page of checks, and `node.json` for a report of a bug.

`check` runs a check in a process of its own and takes out what is nobody's business; `machine`, `hub_checks`, `judge`,
`arithmetic` and `runs` are the checks, `__main__` their list; `on_ranks` is what several processes do together in two
of them.
"""
