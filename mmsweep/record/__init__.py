"""A sweep's folder as files: the one part that reads and writes what a sweep records. It imports no torch."""
