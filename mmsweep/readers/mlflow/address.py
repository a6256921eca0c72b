"""Addresses of MLflow stores, checked without importing mlflow, which takes seconds."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from mmsweep.errors import MASK, VARIABLE, UserError, masked

KEY = "tracking.uri"
EXPECTED = "sqlite:///<path>, an http(s) address of an MLflow server, or null for ./mlflow.db"
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def expanded(uri: str) -> str:
    """The address with the environment's values in place of `${VARIABLE}`.

    Raises:
        UserError: a variable is not set, or the address holds a masked password from a sweep's files.
    """
    unset = next((name for name in VARIABLE.findall(uri) if name not in os.environ), None)
    if unset:
        raise UserError(
            "an environment variable is not set", key=KEY, found=uri, expected=f"{unset} in the environment",
            hint=f"export {unset}=…",
        )  # fmt: skip
    if f":{MASK}@" in uri or f"={MASK}" in uri:
        raise UserError(
            "the sweep's files do not hold the password of this address", key=KEY, found=uri,
            hint="Set tracking.uri again, with the password as ${VARIABLE}",
        )  # fmt: skip
    return VARIABLE.sub(lambda match: os.environ[match.group(1)], uri)


def shown(uri: str | None, resolved: str) -> str:
    """An address for files and output: variables by name, passwords masked."""
    return masked(uri if uri and VARIABLE.search(uri) else resolved)


def check_store(uri: str | None, root: Path) -> None:
    """Refuse an invalid store address, or a server that does not answer.

    Args:
        uri: as in `Tracker`.
        root: folder from which relative paths start.

    Raises:
        UserError: names the URI and `tracking.uri`.
    """
    check_reachable(resolve_uri(uri, root))


def resolve_uri(uri: str | None, root: Path) -> str:
    """The URI with an absolute path, since Ray and MLflow work in other folders than the command.

    Args:
        uri: None: `$MLFLOW_TRACKING_URI`, else `./mlflow.db`.

    Raises:
        UserError: a file store (refused by mlflow), a database in memory, or an unknown scheme.
    """
    uri = expanded(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    scheme = uri.split(":", 1)[0].split("+")[0].lower() if ":" in uri else ""
    if scheme in ("", "file"):
        database = Path(uri.removeprefix("file:")).parent / "mlflow.db"
        hint = f"Write sqlite:///{database} instead; `mlflow migrate-filestore` keeps old runs"
        raise UserError("MLflow no longer writes to folders", key=KEY, found=uri, expected=EXPECTED, hint=hint)
    if scheme not in _SCHEMES:
        raise UserError("this is no address of an MLflow store", key=KEY, found=uri, expected=EXPECTED)
    if scheme != "sqlite":
        return uri.rstrip("/")
    path, mark, query = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or path in ("", ":memory:"):
        raise UserError("a database in memory would be lost at the end", key=KEY, found=uri, expected=EXPECTED)
    return f"sqlite:///{(Path(root).absolute() / Path(path).expanduser())}{mark}{query}"


def check_reachable(uri: str) -> None:
    """Raise UserError if a server does not answer within five seconds."""
    if not uri.startswith(("http://", "https://")):
        return
    parts = urllib.parse.urlsplit(uri)  # urllib would treat user and password as part of the host's name
    health = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path + "/health").geturl()
    try:
        urllib.request.urlopen(health, timeout=5).close()
    except urllib.error.HTTPError:
        return  # it answers; the first call shows whether it accepts us
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # mlflow handles certificates (MLFLOW_TRACKING_INSECURE_TLS, …_SERVER_CERT_PATH)
        raise unreachable(uri, reason) from error


def unreachable(uri: str, error: object) -> UserError:
    """The error of a store that cannot be used, with its reason."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if uri.startswith("sqlite:"):
        hint = "Use a folder that can be written to"
        if "schema" in reason:  # a database of another mlflow version
            hint = f"`mlflow db upgrade {uri}` upgrades it to this version"
    else:
        hint = "Start it (`mlflow server`), correct the address, or set tracking.uri: null to write to ./mlflow.db"
    return UserError(f"the tracking store cannot be used ({reason})", key=KEY, found=uri, hint=hint)
