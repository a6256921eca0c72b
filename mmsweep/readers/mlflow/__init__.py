"""Synchronises MLflow with a sweep's folder. Only this package imports mlflow, and workers never import it."""

import os

# mlflow reads these when `tracker` and `store` import it, or at each call. Values set by the user are kept.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a sweep contacts no server unless asked to
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # otherwise a new database prints its migrations
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print the address with its password
# mlflow's defaults (120 s, 8 attempts) would delay the end of a sweep by minutes if the server does not answer.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
