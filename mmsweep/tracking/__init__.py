"""The MLflow writer of a sweep. mlflow is imported here and nowhere else; workers never import this package."""

import os

# mlflow reads both when it is imported, by `tracker` and `store`.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a sweep talks to nobody that it was not told of
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else a fresh database prints its migrations
