"""A real PostgreSQL of its own, from the programs of the machine, listening on a socket in a temporary folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")
UNPRIVILEGED = ("postgres", "nobody")


class Postgres:
    """A cluster without passwords. Its server refuses to run as root, so root starts it as somebody else."""

    def __init__(self) -> None:
        self.bin = programs()
        self.path = Path(tempfile.mkdtemp(prefix="steer-pg-", dir="/tmp"))  # a socket's path must be short
        self.user = unprivileged()
        if self.user is not None:
            os.chown(self.path, pwd.getpwnam(self.user).pw_uid, pwd.getpwnam(self.user).pw_gid)
        self._call("initdb", "-D", str(self.path / "data"), "-A", "trust", "-U", "steer", "--no-sync", "-E", "UTF8")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://steer@/postgres?host={self.path}"

    def start(self) -> None:
        options = f"-k {self.path} -c listen_addresses='' -c fsync=off -c max_connections=40 -c shared_buffers=16MB"
        self._call("pg_ctl", "start", "-w", "-D", str(self.path / "data"), "-l", str(self.path / "log"), "-o", options)

    def stop(self) -> None:
        """At once, as when it is killed: no connection ends in good order."""
        self._call("pg_ctl", "stop", "-m", "immediate", "-w", "-D", str(self.path / "data"))

    def remove(self) -> None:
        subprocess.run(
            [self._program("pg_ctl"), "stop", "-m", "immediate", "-D", str(self.path / "data")],
            check=False,
            capture_output=True,
            user=self.user,
        )
        shutil.rmtree(self.path, ignore_errors=True)

    def _program(self, name: str) -> str:
        return str(self.bin / name)

    def _call(self, name: str, *words: str) -> None:
        with (self.path / "output").open("ab") as output:
            done = subprocess.run(
                [self._program(name), *words], stdout=output, stderr=output, user=self.user, cwd="/", check=False
            )
        assert done.returncode == 0, (self.path / "output").read_text()


def programs() -> Path:
    """The folder of ``initdb``. Raises ``FileNotFoundError`` where PostgreSQL's server is not installed."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    folders = sorted(DEBIAN.glob("*/bin/initdb"))
    if not folders:
        raise FileNotFoundError("PostgreSQL's server programs are not installed (Debian: postgresql)")
    return folders[-1].parent


def unprivileged() -> str | None:
    """Whom the server runs as; None: ourselves."""
    if os.getuid() != 0:
        return None
    known = {one.pw_name for one in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED if name in known)
