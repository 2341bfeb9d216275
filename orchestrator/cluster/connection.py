"""Ray, started quietly and with a token, or joined where an address says so."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import UnreachableError

NAMESPACE = "orchestrator"

# Set before the first import of ray, which reads them once.
_ENVIRONMENT = {
    # uv's hook would pack the working folder and build an environment for every session; a local cluster has this one.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # How often a Train controller looks after its workers: the default of 2 s is added to every start.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
    # After how long it takes a worker that does not answer for dead: as long as the desk waits, not ten minutes.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # The searcher alone bounds how many are asked for. With Tune's bound of one, two clients that end together leave one client
    # too many: it is ended, and soon another is started, which costs a processor a second.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare_environment(home: Path, *, local: bool) -> None:
    """Set Ray's variables, and for a local cluster a token of its own, readable by this user alone."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if local:
        # About ten processes import torch or ray. Container images often forbid Python to keep what it compiled, which then
        # costs each of them seconds, every time.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
    if local and "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        token = home / "ray-token"
        if not token.exists():
            home.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as handle:
                handle.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ["RAY_AUTH_MODE"] = "token"


@contextlib.contextmanager
def connected(address: str | None, *, verbose: bool) -> Iterator[None]:
    """Ray for the time of a sweep, after `prepare_environment`.

    Args:
        address: of a cluster to join; None starts a private one, which ends with the sweep.

    Raises:
        UnreachableError: nothing answers at the address.
    """
    import ray

    if not verbose:
        _silence()
    # What the raylet has to say is printed by a thread of Ray's to standard output, where data belongs.
    with contextlib.redirect_stdout(sys.stderr if verbose else io.StringIO()):
        yield from _session(ray, address, verbose=verbose)


def _session(ray: Any, address: str | None, *, verbose: bool) -> Iterator[None]:
    try:
        ray.init(
            address=address or "local",
            namespace=NAMESPACE,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            **({"include_dashboard": True, "dashboard_host": "127.0.0.1"} if address is None else {}),
        )
    except Exception as error:  # whatever of Ray's start-up fails, also by bare Exception
        where = f"a Ray cluster must answer at {address}" if address else "Ray must start on this machine"
        raise UnreachableError(f"{where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _silence() -> None:
    """Keep Ray's own talk off the user's screen; errors still pass."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
