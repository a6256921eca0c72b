"""MLflow, made to agree with a sweep's folder. mlflow is imported here and nowhere else, and never by workers."""

import os

# mlflow reads these when it is imported, by `tracker` and `store`, or at each call. What the user has set stands.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a sweep talks to nobody that it was not told of
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else a fresh database prints its migrations
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print the address with its password
# mlflow's own defaults wait 120 s and try 8 times: the end of a sweep would wait for a server that is away for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
