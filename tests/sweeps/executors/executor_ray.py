"""A real Ray cluster of two nodes on this machine, with GPUs that exist by name only."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from executor_places import until
from steer_experiments import processes

RAY = Path(sys.executable).with_name("ray")
GPUS_PER_NODE = 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Cluster:
    """``ray start`` for each node, each a process of ours that ends with its daemons."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.gcs, self.dashboard = f"127.0.0.1:{free_port()}", free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def log(self, name: str) -> str:
        with urllib.request.urlopen(f"{self.address}/api/jobs/{name}/logs", timeout=30) as answer:
            return str(json.loads(answer.read())["logs"])

    def start(self) -> None:
        port = self.gcs.split(":")[1]
        ports = [f"--port={port}", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={free_port()}"]
        self._node("--head", *ports, f"--temp-dir={self.folder}", "--node-ip-address=127.0.0.1")
        until(self._answers)
        for _ in range(self.size - 1):
            self._node(f"--address={self.gcs}")

    def _node(self, *arguments: str) -> None:
        hidden = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        resources = ["--num-cpus=8", f"--num-gpus={GPUS_PER_NODE}", f"--object-store-memory={80 * 1024**2}"]
        resources.append(f"--dashboard-agent-listen-port={free_port()}")  # where jobs are submitted; fixed by default
        with (self.folder / "nodes.txt").open("ab") as output:
            command = [str(RAY), "start", *arguments, *resources, "--block", "--disable-usage-stats"]
            self.nodes.append(processes.spawn(command, output, hidden | {"RAY_enable_open_telemetry": "0"}))

    def _answers(self) -> bool:
        assert self.nodes[0].poll() is None, (self.folder / "nodes.txt").read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{self.address}/api/version", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL to all of Ray's own processes; those of the jobs do not name its folder."""
        for node in self.nodes:
            processes.end(psutil.Process(node.pid).children(recursive=False), patience_s=0.0)
            processes.end_child(node)
        processes.end(processes.users_of(self.folder), patience_s=0.0)
        self.nodes.clear()

    def stop(self) -> None:
        for node in reversed(self.nodes):
            processes.end_child(node)
        processes.end(processes.users_of(self.folder), patience_s=2.0)
        self.nodes.clear()


@contextmanager
def cluster(nodes: int = 2) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="str-"))  # short, and not a name that runs tidy up
    found = Cluster(folder, nodes)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)
