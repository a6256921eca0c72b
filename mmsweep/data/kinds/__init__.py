"""Kinds of modalities, each in the file of its name."""
