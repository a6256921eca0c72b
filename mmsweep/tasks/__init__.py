"""Tasks: each in the file of its name, by the contract of task.py."""
