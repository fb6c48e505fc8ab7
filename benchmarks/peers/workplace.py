"""The folder where checkpoints, environments and models of the peers are made, each once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.peers import PEERS, Peer
from benchmarks.peers.worker import Job

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Workplace:
    """Everything under one folder, apart by the number of layers.

    Attributes:
        folder: where.
        layers: of the decoder and of the tower; None for the true shape.
    """

    folder: Path
    layers: int | None

    @property
    def shape(self) -> Path:
        return self.folder / ("full" if self.layers is None else f"layers-{self.layers}")

    def environment(self, name: str) -> Path:
        """The Python of a peer."""
        if not PEERS[name].own_environment:
            return Path(sys.executable)
        return once(self.folder / "environments" / name, lambda folder: self._install(name, folder)) / "bin" / "python"

    def checkpoint(self) -> Path:
        """Folder with `vlm` and `text`."""
        layers = () if self.layers is None else ("--layers", self.layers)
        command = (sys.executable, "-m", "models.true_shapes.published")
        return once(self.shape / "checkpoint", lambda folder: self._run("checkpoint", *command, folder, *layers))

    def model(self, name: str, precision: str) -> Path:
        """What a peer loads."""
        name = PEERS[name].models_of or name
        peer, checkpoint = PEERS[name], self.checkpoint() / PEERS[name].source
        if not peer.convert:
            return checkpoint
        programs = self.environment(name).parent

        def convert(folder: Path) -> None:
            places = {"bin": programs, "checkpoint": checkpoint, "precision": precision, "model": folder}
            self._run(f"{name}-{precision}", *(word.format(**places) for word in peer.convert))

        return once(self.shape / "models" / f"{name}-{precision}", convert)

    def measure(self, name: str, precision: str, threads: int, new_tokens: int) -> dict[str, Any]:
        """What a worker reports of one process."""
        peer, model = PEERS[name], self.model(name, precision)
        job = Job(str(model), precision, peer.keeps, threads, new_tokens, peer.packages, peer.encode)
        command = (self.environment(name), "-m", f"benchmarks.peers.{peer.worker or name}_worker", json.dumps(asdict(job)))
        output = self._run(f"measure-{name}-{precision}", *command, OMP_NUM_THREADS=str(threads))
        reported: dict[str, Any] = json.loads(output.splitlines()[-1])
        return reported

    def drive(self, name: str, module: str, job: dict[str, Any]) -> dict[str, Any]:
        """What a module of this folder prints about a load, in a peer's environment."""
        command = (self.environment(name), "-m", f"benchmarks.peers.{module}", json.dumps(job))
        output = self._run(f"{module}-{name}", *command, OMP_NUM_THREADS=str(job["threads"]))
        reported: dict[str, Any] = json.loads(output.splitlines()[-1])
        return reported

    def _install(self, name: str, folder: Path) -> None:
        """torch first and alone, with what it needs: the other requirements would choose another build of it."""
        python = folder / "bin" / "python"
        pip = (python, "-m", "pip", "install", "--quiet")
        self._run(f"environment-{name}", sys.executable, "-m", "venv", folder)
        self._run(f"environment-{name}", *pip, TORCH)
        self._run(f"environment-{name}", *pip, "--no-deps", "-r", REQUIREMENTS / f"{name}.txt")

    def _run(self, log: str, *command: object, **variables: str) -> str:
        """What a command printed; its error output goes to a log."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **variables}
        with (logs / f"{log}.log").open("w") as errors:
            done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}. See {errors.name}.")
        return done.stdout


def once(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, made where it is missing. What failed half way is made anew."""
    target = target.absolute()
    mark = target.with_name(f"{target.name}.complete")
    if not mark.exists():
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target)
        mark.touch()
    return target


def commands(names: Sequence[str]) -> list[str]:
    """How the peers' models are made, for a reader."""
    return [_readable(PEERS[name]) for name in names if PEERS[name].convert]


def _readable(peer: Peer) -> str:
    names = {"checkpoint": "CHECKPOINT", "precision": "PRECISION", "model": "MODEL"}
    return " ".join(peer.convert).replace("{bin}/", "").format(**names)
