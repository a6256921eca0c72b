"""Writes a few samples of each dataset in the layouts that it circulates in, with files of the true formats."""
