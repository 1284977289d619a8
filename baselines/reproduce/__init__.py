"""All models of a list on several benchmarks, to tables and a report: the plan, the steps, and their progress."""
