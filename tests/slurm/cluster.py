"""A Slurm cluster of made-up nodes: munge, slurmctld, a slurmd for each node, and a database for accounting.

    with Cluster(nodes=2) as cluster:
        job = cluster.submit("--array=0-2", wrap="hostname")
        wait_for(lambda: set(cluster.states(job).values()) == {"COMPLETED"})

It runs as root on one machine, on loopback only, without systemd and cgroups. All it has lies in one folder,
which goes away with it; besides there is a line in /etc/hosts while it is up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from tests.slurm import guard, hosts, packages
from tests.slurm.daemons import Daemons, end, parents_of, with_children
from tests.slurm.settings import Layout, listens, new_layout, write_all
from tests.slurm.waiting import wait_for

#: Clusters come up one after the other: each looks for free ports, and may install packages.
LOCK = Path("/run/salt-test-cluster.lock")
#: Sockets of a longer path cannot be made.
LONGEST_FOLDER = 80
SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")
OUTER = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_")
UP = {"idle", "mixed", "allocated", "completing"}


class Cluster:
    """A cluster in `folder` (default: a new one in /tmp), of that shape; one that is there keeps its shape.

    CPUs, MB and GPUs are those of each node. `extra_conf`: lines for slurm.conf, stronger than what is there.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        nodes: int = 4,
        cpus: int = 4,
        memory_mb: int = 8000,
        gpus: int = 2,
        accounting: bool = True,
        extra_conf: str = "",
    ) -> None:
        self._shape = {
            "nodes": nodes,
            "cpus": cpus,
            "memory_mb": memory_mb,
            "gpus": gpus,
            "accounting": accounting,
            "extra_conf": extra_conf,
        }
        self._folder = None if folder is None else folder.resolve()
        self._layout: Layout | None = None
        self._daemons: Daemons | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    # --- coming and going

    def up(self, guarded: bool = True) -> None:
        """Start what is not running, the first time all of it, and wait until it answers.

        Guarded, it does not outlive this process. Raises `RuntimeError`, and leaves nothing, if it cannot.
        """
        refusal = packages.refusal(bool(self._shape["accounting"]))
        if refusal is not None:
            raise RuntimeError(refusal)
        try:
            with _alone():
                lacking = packages.missing(bool(self._shape["accounting"]))
                if lacking:
                    packages.install(lacking)
                self._make()
                if guarded and self._guard is None:
                    self._guard = guard.start(self.folder)
                hosts.add(self.folder, self.layout.names, packages.may_change_machine())
                self._start_missing()
        except AssertionError as error:
            last = self._last_words()
            self.down()
            raise RuntimeError(f"the cluster did not come up: {error}\n{last}") from error
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End all that is left of the cluster and its jobs, and remove its folder. Harmless if not up."""
        if self._folder is not None and (self._folder / "layout.json").exists():
            daemons = self.daemons
            # The daemons first, so that nothing new is started meanwhile. They are not asked: what they would
            # save goes away with the folder.
            while left := daemons.all() or daemons.jobs():
                end(with_children(left), kill=True)
            daemons.forget_all()
            hosts.remove(self.folder)
            shutil.rmtree(self.folder)
        self._layout = self._daemons = None
        if self._guard is not None:
            guard.dismiss(self._guard)
            self._guard = None

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # --- its parts

    @property
    def folder(self) -> Path:
        if self._folder is None:
            raise RuntimeError("this cluster is not up")
        return self._folder

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            self._layout = msgspec.json.decode((self.folder / "layout.json").read_bytes(), type=Layout)
        return self._layout

    @property
    def daemons(self) -> Daemons:
        if self._daemons is None:
            plain = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
            self._daemons = Daemons(self.folder, plain | self.environment())
        return self._daemons

    def environment(self) -> dict[str, str]:
        """The variables by which Slurm's commands find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": packages.search_path()}

    def stop(self, name: str) -> None:
        """End a daemon in good order: munged, mariadb, slurmdbd, slurmctld, or the slurmd of a node, `n1`."""
        self.daemons.stop(name)

    def restart(self, name: str) -> None:
        """End a daemon in good order, and start it, with any other that is not running, until it answers."""
        self.stop(name)
        self._start_missing()

    def kill_node(self, name: str) -> None:
        """Let a node die, with all that runs on it. Slurm takes a minute to notice."""
        self.daemons.kill(name)
        jobs = self.daemons.jobs(name)
        above = {parent for job in jobs for parent in parents_of(job)}
        # Those that look after the jobs first, or they would report their end.
        end([process for process in self.daemons.all() if process in above], kill=True)
        end(jobs, kill=True)

    # --- Slurm's commands

    def attempt(self, *command: str, limit_s: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's, whatever comes of it."""
        return subprocess.run(
            command,
            env=self.daemons.plain,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def run(self, *command: str, limit_s: float = 30) -> str:
        """The output of a command of Slurm's. Raises `AssertionError` with its words if it fails."""
        done = self.attempt(*command, limit_s=limit_s)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def submit(self, *options: str, wrap: str) -> str:
        """The id of a new job that runs a line of shell."""
        output = f"--output={self.folder}/log/job-%j.out"
        return self.run("sbatch", "--parsable", output, *options, f"--wrap={wrap}").strip()

    def states(self, job: str = "") -> dict[str, str]:
        """The states of a job's tasks (`12_3`) or of the job itself, those that ended lately among them.

        Without a job: of all that wait or run.
        """
        which = (f"--jobs={job}", "--states=all") if job else ()
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T", *which).splitlines()
        return dict(line.split() for line in lines)

    def state(self, job_task: str) -> str:
        return self.states(job_task)[job_task]

    def hurry(self, job_task: str, limit_s: float = 30) -> None:
        """Let a job that was queued again start now: Slurm has it wait for two minutes, whatever is set."""
        wait_for(lambda: self.state(job_task) == "PENDING", limit_s, f"{job_task} back in the queue")
        # A node refuses the start of a job that it ended within the same second, which then fails for good.
        time.sleep(2)
        self.run("scontrol", "update", f"jobid={job_task}", "StartTime=now")

    def expire(self, job_task: str) -> None:
        """Let a running job come to its time limit soon: in 5 to 35 s, as Slurm looks at limits each 30 s."""
        self.run("scontrol", "update", f"jobid={job_task}", "EndTime=now+5")

    def node_down(self, name: str) -> None:
        """Have Slurm give a node up at once: its jobs go back into the queue."""
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def node_resume(self, name: str) -> None:
        self.run("scontrol", "update", f"nodename={name}", "state=resume")

    def node_states(self) -> dict[str, str]:
        """Node -> idle, mixed, allocated, down, ...; a mark at its end says that it does not answer."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def calm(self) -> None:
        """As after `up`: no jobs, all daemons running, all nodes up."""
        self._start_missing()
        deadline = time.monotonic() + 1

        def empty() -> bool:
            found = self.states()
            if found:
                self.run("scancel", "--quiet", "--user=root")
            # Some do not end when told to; and of a node that is down Slurm does not know what still runs.
            if not found or time.monotonic() > deadline:
                end(self.daemons.jobs(), kill=True)
            return not found

        wait_for(empty, 30, "no jobs")
        for name, state in self.node_states().items():
            if state not in UP:
                self.node_resume(name)
        self._await_nodes(UP.__contains__)

    # --- starting

    def _make(self) -> None:
        """The folder with all files in it, unless it is there."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="slurm.", dir="/tmp")).resolve()
        folder = self._folder
        if len(str(folder)) > LONGEST_FOLDER or any(character.isspace() for character in str(folder)):
            raise RuntimeError(
                f"{folder}: at most {LONGEST_FOLDER} characters and no blanks, for sockets in it"
            )
        if (folder / "layout.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # munged wants its socket to be within everybody's reach
        if any(folder.iterdir()):
            raise RuntimeError(
                f"{folder} holds something else than a test cluster; name a new or an empty folder"
            )
        layout = new_layout(**self._shape)  # type: ignore[arg-type]
        (folder / "layout.json").write_bytes(msgspec.json.encode(layout))
        for name in ("run", "log", "state", "spool", *(f"spool/{node}" for node in layout.names)):
            (folder / name).mkdir()
        write_all(folder, layout)

    def _start_missing(self) -> None:
        """Start each daemon that is not running, after those it needs, and wait for its answer."""
        folder, start = self.folder, self._start
        munge = [f"--{name}={folder}/munge/{name[:-5]}" for name in ("key-file", "seed-file", "pid-file")]
        munge += [
            f"--socket={folder}/run/munge.sock",
            f"--log-file={folder}/log/munged.log",
            "--num-threads=2",
        ]
        start("munged", "munged", "--foreground", *munge)
        if self.layout.accounting:
            self._start_database()
        self._ready("munged", (folder / "run/munge.sock").exists)
        if self.layout.accounting and start(
            "slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=f"{folder}/db/sock"
        ):
            self._await("slurmdbd", self.layout.port + 1, "sacctmgr", "--noheader", "show", "cluster")
        fresh = start("slurmctld", "slurmctld", "-D", "-i")
        started = [start(name, "slurmd", "-D", "-N", name) for name in self.layout.names]
        if fresh:
            self._await("slurmctld", self.layout.port, "scontrol", "ping")
        if fresh or any(started):
            self._await_nodes(lambda state: not state.endswith("*") and state != "unknown")

    def _start_database(self) -> None:
        folder = self.folder
        # Without a network and passwords: a socket, in a folder that only root can enter. Safe against the
        # death of the database, not against that of the machine, and so quicker.
        command = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}/db"]
        command += ["--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M"]
        if not (folder / "db").exists():
            (folder / "db").mkdir(mode=0o700)
            create = "create database mysql;\ncreate database slurm_acct_db;\nuse mysql;\n"
            with open(folder / "log/bootstrap.out", "wb") as output:
                done = subprocess.run(
                    [*command, "--bootstrap"],
                    input=create.encode() + SYSTEM_TABLES.read_bytes(),
                    env=self.daemons.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=60,
                    check=False,
                )
            assert done.returncode == 0, "mariadbd could not make its tables"
        serve = ["--skip-networking", "--skip-grant-tables", f"--socket={folder}/db/sock"]
        serve += [f"--pid-file={folder}/run/mariadb.own", "--innodb-buffer-pool-size=64M"]
        self._start("mariadb", *command, *serve)
        self._ready("mariadb", (folder / "db/sock").exists)

    def _start(self, name: str, *command: str, **more: str) -> bool:
        if self.daemons.find(name) is not None:
            return False
        self.daemons.start(name, command, **more)
        return True

    def _await(self, name: str, port: int, *question: str) -> None:
        # Asked before it listens, a command takes seconds before it tries again.
        self._ready(name, lambda: listens(port))
        self._ready(name, lambda: self.attempt(*question).returncode == 0)

    def _ready(self, name: str, condition: Callable[[], bool]) -> None:
        wait_for(lambda: condition() or self.daemons.find(name) is None, 30, f"{name} ready")
        assert self.daemons.find(name) is not None, f"{name} ended"

    def _await_nodes(self, good: Callable[[str], bool]) -> None:
        wait_for(lambda: all(map(good, self.node_states().values())), 60, "all nodes")

    def _last_words(self) -> str:
        logs = sorted((self.folder / "log").glob("*")) if self._folder is not None else []
        return "\n".join(
            f"{log.name}: {line}"
            for log in logs
            for line in log.read_text(errors="replace").splitlines()[-4:]
        )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with open(LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
