"""Random wrong inputs against the command line: `python -m tests.fuzz`; results are in docs/results/fuzz.md."""
