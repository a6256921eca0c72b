"""Reads and writes the files of a sweep's folder; no other part does. Imports no torch."""
