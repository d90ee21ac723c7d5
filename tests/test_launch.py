"""The scripts of launch/, with stand-ins for training, SLURM and gcloud."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOCAL, SLURM, TPU_POD = (
  ROOT / "launch" / name for name in ("local.sh", "slurm.sh", "tpu_pod.sh")
)
CONFIG = ["--config", "configs/synthetic.py:tiny"]
# What quoting may break.
PATH_FLAG = """--config.dataset.path=it's "a b" $HOME * \\ ; ünï"""

# In place of `python -m delf_jax.train`. $DOES says what each process (by its
# --process_id or host) does at its first, second, ... start.
TRAINING = r"""
import json, os, pathlib, signal, sys, time
if sys.argv[1] == "-c":
  os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
ids = [word[13:] for word in sys.argv if word.startswith("--process_id=")]
who = os.environ.get("HOST") or (ids or ["0"])[0]
records = pathlib.Path(os.environ["RECORDS"])
starts = len(list(records.glob(f"{who}-*.json")))
plan = json.loads(os.environ.get("DOES", "{}")).get(who, [])
does = plan[starts] if starts < len(plan) else "finish"

def finish(*unused):
  print("trained in 3 s; the model is in RUN/model")
  sys.exit(0)

def save(*unused):
  print("stopped after step 3, all saved; resume with\n  python -m ...")
  sys.exit(0)

handler = {"wait": save, "finish late": finish}.get(does, signal.SIG_IGN)
signal.signal(signal.SIGTERM, handler)
record = {
  "argv": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()
}
(records / f"{who}-{starts}").write_text(json.dumps(record))
(records / f"{who}-{starts}").rename(records / f"{who}-{starts}.json")
if does == "finish":
  finish()
if does == "fail":
  sys.exit("error: step 2 went wrong")
print("step 2", flush=True)
time.sleep(60)
"""


def write_program(path: pathlib.Path, text: str) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!{sys.executable} -IS\n{text}")
  path.chmod(0o755)
  return path


def eventually(condition, seconds: float = 20):
  """Returns the first true value that `condition` gives."""
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, "it never happened"
    time.sleep(0.02)
  return value


class Script(subprocess.Popen):
  """A script that runs, and what it has written so far."""

  def __init__(
    self,
    root: pathlib.Path,
    script: pathlib.Path,
    words: tuple[str, ...],
    environment: dict[str, str],
  ):
    """Starts it."""
    number = len(list(root.glob("stdout*")))
    self._files = [root / f"stdout{number}", root / f"stderr{number}"]
    with self._files[0].open("w") as output, self._files[1].open("w") as errors:
      super().__init__(
        ["bash", script, *words],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=errors,
      )

  def stdout_text(self) -> str:
    return self._files[0].read_text()

  def stderr_text(self) -> str:
    return self._files[1].read_text()


class Bench:
  """A directory with stand-ins, and the scripts run among them."""

  def __init__(self, root: pathlib.Path):
    """Makes the stand-in for training."""
    self.root = root
    self.workdir = root / "run 100%"
    self.records = root / "records"
    self.records.mkdir()
    (root / "bin").mkdir()
    self.environment = {
      "HOME": str(root),
      "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
      "PYTHON": str(write_program(root / "my python", TRAINING)),
      "RECORDS": str(self.records),
    }
    self.flags = [*CONFIG, f"--workdir={self.workdir}", PATH_FLAG]
    self.running = []

  def does(self, **starts: list[str]) -> None:
    named = {
      name.removeprefix("process_"): does for name, does in starts.items()
    }
    self.environment["DOES"] = json.dumps(named)

  def start(self, script: pathlib.Path, *words: str) -> "Script":
    process = Script(self.root, script, words, self.environment)
    self.running.append(process)
    return process

  def run(self, script: pathlib.Path, *words: str) -> tuple[int, str, str]:
    """Returns the exit status, and what was written to stdout and stderr."""
    process = self.start(script, *words)
    return (
      process.wait(timeout=60),
      process.stdout_text(),
      process.stderr_text(),
    )

  def record(self, name: str) -> dict:
    """Waits until training has started; returns what it was given."""
    path = self.records / f"{name}.json"
    return json.loads(eventually(lambda: path.exists() and path.read_text()))

  def edited(self, script: pathlib.Path, **settings: str) -> pathlib.Path:
    """Copies a script and edits its block of settings."""
    before, block, after = re.split("(?m)^# ----.*\n", script.read_text())
    for name, value in settings.items():
      block, count = re.subn(
        rf"(?m)^{name}=.*$", lambda _, v=value, n=name: f"{n}={v}", block
      )
      assert count == 1, name
    copy = self.root / "checkout" / "launch" / script.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(before + block + after)
    return copy

  def close(self) -> None:
    for process in self.running:
      process.kill()
      process.wait()
    for record in self.records.glob("*.json"):
      try:
        os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
      except ProcessLookupError:
        pass


@pytest.fixture
def bench(tmp_path):
  bench = Bench(tmp_path)
  yield bench
  bench.close()


def is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")))
def test_the_shell_can_read_it(script):
  shell = script.read_text().split("\n", 1)[0].split("/")[-1].split()[-1]
  subprocess.run([shell, "-n", script], check=True)
  assert max(map(len, script.read_text().split("\n"))) <= 80


@pytest.mark.parametrize("script", [LOCAL, SLURM, TPU_POD])
def test_it_explains_itself_and_has_one_place_to_edit(script, bench):
  status, output, _ = bench.run(script, "-h")
  assert status == 0
  assert f"launch/{script.name} " in output and "--dry-run" in output
  assert script.read_text().count("# ---- edit here ---") == 1


# --- local.sh -----------------------------------------------------------------


def test_local_dry_run_of_one_process(bench):
  status, output, _ = bench.run(LOCAL, "--dry-run", *bench.flags)
  assert status == 0
  assert shlex.split(output) == [
    bench.environment["PYTHON"],
    "-m",
    "delf_jax.train",
    *bench.flags,
  ]
  assert not list(bench.records.iterdir())


def test_local_dry_run_of_several_processes(bench):
  bench.environment["XLA_FLAGS"] = "--xla_a=1"
  script = bench.edited(LOCAL, port="4321", flags='(--config.note="b  c")')
  words = ["-n", "2", "--devices", "3", "--dry-run"]
  status, output, _ = bench.run(script, *words, *bench.flags)
  assert status == 0
  assert [shlex.split(line) for line in output.splitlines()] == [
    [
      "env",
      "JAX_PLATFORMS=cpu",
      "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=3",
      bench.environment["PYTHON"],
      "-m",
      "delf_jax.train",
      "--config.note=b  c",
      *bench.flags,
      "--coordinator=localhost:4321",
      "--num_processes=2",
      f"--process_id={process}",
    ]
    for process in range(2)
  ]


def test_local_one_process_takes_the_place_of_the_script(bench):
  bench.does(process_0=["wait", "fail"])
  process = bench.start(LOCAL, *bench.flags)
  record = bench.record("0-0")
  assert record["argv"] == ["-m", "delf_jax.train", *bench.flags]
  assert record["pid"] == process.pid
  assert "JAX_PLATFORMS" not in record["environment"]
  process.terminate()
  assert process.wait(timeout=20) == 0
  assert "resume with" in process.stdout_text()
  assert bench.run(LOCAL, *bench.flags)[0] == 1


def test_local_processes_meet_and_finish(bench):
  status, output, errors = bench.run(LOCAL, "-n", "2", *bench.flags)
  assert status == 0
  first, second = bench.record("0-0"), bench.record("1-0")
  assert first["argv"][2:-3] == second["argv"][2:-3] == bench.flags
  assert first["argv"][-3] == second["argv"][-3]
  assert re.fullmatch(r"--coordinator=localhost:\d+", first["argv"][-3])
  for record in first, second:
    assert record["environment"]["JAX_PLATFORMS"] == "cpu"
    assert "XLA_FLAGS" not in record["environment"]
  assert output.count("trained in") == 1
  log = bench.workdir / "logs" / "process_1.log"
  assert str(log.parent) in errors
  assert "trained in" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_signals_reach_every_process(bench, number):
  bench.does(process_0=["wait"], process_1=["wait"])
  process = bench.start(LOCAL, "-n", "2", *bench.flags)
  bench.record("0-0"), bench.record("1-0")
  process.send_signal(number)
  assert process.wait(timeout=20) == 0
  assert "resume with" in process.stdout_text()
  assert "resume with" in (bench.workdir / "logs" / "process_1.log").read_text()
  assert "ended with" not in process.stderr_text()


def test_local_a_failure_ends_the_others(bench):
  bench.does(process_0=["stubborn"], process_1=["fail"])
  script = bench.edited(LOCAL, grace="1")
  status, _, errors = bench.run(script, "-n", "2", *bench.flags)
  assert status == 1
  assert "process 1 ended with status 1" in errors
  assert "process_1.log ends in: error: step 2 went wrong\n" in errors
  assert not is_alive(bench.record("0-0")["pid"])


def test_local_a_second_interrupt_kills(bench):
  bench.does(process_0=["stubborn"], process_1=["stubborn"])
  process = bench.start(LOCAL, "-n", "2", *bench.flags)
  records = bench.record("0-0"), bench.record("1-0")
  process.send_signal(signal.SIGINT)
  time.sleep(0.7)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=20) == 128 + signal.SIGKILL
  assert not any(is_alive(record["pid"]) for record in records)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (CONFIG, "give --workdir"),
    (["-n", "0", "--workdir=a"], "-n needs a positive number"),
    (["--workdir=a", "--devices"], "--devices needs a positive number"),
  ],
)
def test_local_errors_are_one_line(bench, words, message):
  status, output, errors = bench.run(LOCAL, *words)
  assert status == 1 and not output
  assert message in errors and errors.count("\n") == 1


def test_local_wants_a_python_that_has_the_package(bench):
  bench.environment["PYTHON"] = "/bin/false"
  status, _, errors = bench.run(LOCAL, *bench.flags)
  assert status == 1
  assert errors.startswith("delf_jax: /bin/false cannot import delf_jax")


# --- slurm.sh -----------------------------------------------------------------

# One task. As the real one does, it kills its task when it is terminated.
SRUN = """
import os, pathlib, signal, subprocess, sys
words = sys.argv[1:]
options = [word for word in words if word.startswith("--")][:3]
first = next(i for i, word in enumerate(words) if word[:2] != "--")
output = next(word for word in words if word.startswith("--output="))
path = output[9:].replace("%t", "0").replace("%%", "%")
root = pathlib.Path(os.environ["RECORDS"])
with open(path, "w") as log:
  task = subprocess.Popen(words[first:], stdout=log, stderr=log)
signal.signal(signal.SIGTERM, lambda *_: task.kill())
(root / "task").write_text(str(task.pid))
(root / "srun").write_text("\\n".join(words[:first]))
sys.exit(task.wait() % 256)
"""
SCANCEL = """
import os, pathlib, sys
root = pathlib.Path(os.environ["RECORDS"])
assert sys.argv[1:] == ["--signal=TERM", "77"], sys.argv
os.kill(int((root / "task").read_text()), 15)
"""
SCONTROL = """
import os, pathlib, sys
pathlib.Path(os.environ["RECORDS"], "scontrol").write_text(str(sys.argv[1:]))
"""


@pytest.fixture
def cluster(bench):
  for name, text in [
    ("srun", SRUN),
    ("scancel", SCANCEL),
    ("scontrol", SCONTROL),
  ]:
    write_program(bench.root / "bin" / name, text)
  bench.environment["SLURM_JOB_ID"] = "77"
  return bench


def is_requeued(bench) -> bool:
  path = bench.records / "scontrol"
  assert not path.exists() or path.read_text() == "['requeue', '77']"
  return path.exists()


def test_slurm_dry_run(bench):
  status, output, _ = bench.run(SLURM, "--dry-run", *bench.flags)
  assert status == 0
  lines = [line for line in output.splitlines() if line[0] != "#"]
  assert [shlex.split(line) for line in lines] == [
    [
      "srun",
      "--kill-on-bad-exit=1",
      f"--output={bench.root}/run 100%%/logs/slurm_JOB_0_%t.log",
      bench.environment["PYTHON"],
      "-m",
      "delf_jax.train",
      "--cluster",
      *bench.flags,
    ],
    ["scancel", "--signal=TERM", "JOB"],
    ["scontrol", "requeue", "JOB"],
  ]


def test_slurm_finds_its_directives():
  # sbatch reads no further than the first line that is no comment.
  header = re.split(r"(?m)^[^#\n]", SLURM.read_text())[0]
  directives = re.findall("(?m)^#SBATCH --([a-z-]+)", header)
  assert {"requeue", "signal", "ntasks-per-node", "time"} <= set(directives)
  assert SLURM.read_text().count("#SBATCH") == len(directives)


def test_slurm_a_finished_run_is_not_queued_again(cluster):
  cluster.environment |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}
  status, _, errors = cluster.run(SLURM, *cluster.flags)
  assert status == 0 and "training is finished" in errors
  assert not is_requeued(cluster)
  record = cluster.record("0-0")
  assert record["argv"] == ["-m", "delf_jax.train", "--cluster", *cluster.flags]
  assert record["environment"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
  assert "--cpus-per-task=8" in (cluster.records / "srun").read_text()
  log = cluster.workdir / "logs" / "slurm_77_0_0.log"
  assert "trained in" in log.read_text()


@pytest.mark.parametrize(
  ("does", "number", "requeued", "message"),
  [
    ("wait", signal.SIGUSR1, True, "job 77 queues again"),
    ("finish late", signal.SIGUSR1, False, "training is finished"),
    ("wait", signal.SIGTERM, False, "same sbatch command continues it"),
  ],
)
def test_slurm_stops_in_order(cluster, does, number, requeued, message):
  cluster.does(process_0=[does])
  process = cluster.start(SLURM, *cluster.flags)
  record = cluster.record("0-0")
  assert "JAX_LOCAL_DEVICE_IDS" not in record["environment"]
  eventually((cluster.records / "srun").exists)
  process.send_signal(number)
  if number == signal.SIGTERM:  # SLURM tells the tasks as well
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(record["pid"], signal.SIGTERM)
  assert process.wait(timeout=20) == 0
  assert message in process.stderr_text()
  assert is_requeued(cluster) == requeued


def test_slurm_does_not_start_for_ever(cluster):
  cluster.environment["SLURM_RESTART_COUNT"] = "100"
  cluster.does(process_0=["wait"])
  process = cluster.start(SLURM, *cluster.flags)
  cluster.record("0-0")
  eventually((cluster.records / "srun").exists)
  process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=20) == 1
  assert not is_requeued(cluster)
  assert "not finished after 100 restarts" in process.stderr_text()


def test_slurm_a_failure_is_not_repeated(cluster):
  cluster.does(process_0=["fail"])
  status, _, errors = cluster.run(SLURM, *cluster.flags)
  assert status == 1 and not is_requeued(cluster)
  assert "ended with status 1; see" in errors


def test_slurm_wants_a_job(bench):
  status, output, errors = bench.run(SLURM, *bench.flags)
  assert status == 1 and not output
  assert "this is no SLURM job" in errors and errors.count("\n") == 1


# --- tpu_pod.sh ---------------------------------------------------------------

# A cloud of two hosts, each a directory. `failures` has a line for each attempt
# to create that fails; with `preempt`, the slice goes when it is seen to train.
GCLOUD = r"""
import json, os, pathlib, shutil, signal, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
assert sys.argv[1:4] == ["compute", "tpus", "tpu-vm"], sys.argv
verb, *words = sys.argv[4:]
with open(cloud / "calls", "a") as calls:
  calls.write(json.dumps([verb, *words]) + "\n")
options = dict(word[2:].split("=", 1) for word in words if "=" in word)
assert options["zone"] == "my-zone" and options["project"] == "my project"
state = cloud / "state"

def end_training():
  for path in cloud.glob("host*/tmp/delf_jax/pid"):
    try:
      os.kill(int(path.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass

if verb == "create":
  failures = cloud / "failures"
  if failures.exists() and (lines := failures.read_text().splitlines(True)):
    failures.write_text("".join(lines[1:]))
    sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.create) " + lines[0])
  state.write_text("READY")
elif not state.exists():
  sys.exit(f"ERROR: (gcloud.tpu-vm.{verb}) NOT_FOUND: no such node")
elif verb == "describe":
  print(state.read_text())
elif verb == "delete":
  end_training()
  state.unlink()
  for host in cloud.glob("host*"):
    shutil.rmtree(host)
elif state.read_text() != "READY":
  sys.exit(f"ERROR: the TPU is in state {state.read_text()}")
else:
  hosts = ["host0", "host1"][:1 if options["worker"] == "0" else 2]
  for name in hosts:
    home = cloud / name
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    if verb == "scp":
      shutil.copy(words[0], home / words[1].split(":")[1])
      continue
    environment = {**os.environ, "HOME": str(home), "HOST": name}
    del environment["PYTHON"]
    environment["TMPDIR"] = str(home / "tmp")
    done = subprocess.run(
      ["bash", "-c", options["command"]], env=environment, cwd=home,
      stdout=subprocess.PIPE, text=True
    )
    print(done.stdout, end="")
    if done.returncode:
      sys.exit(done.returncode)
    if "training=running" in done.stdout and (cloud / "preempt").exists():
      (cloud / "preempt").unlink()
      state.write_text("PREEMPTED")
      end_training()
"""
# `python3 -m pip` on the hosts makes uv, which makes the environment.
PIP = r"""
import os, pathlib, sys
assert sys.argv[1:4] == ["-m", "pip", "install"], sys.argv
uv = pathlib.Path("uv/bin/uv")
uv.parent.mkdir(parents=True)
os.symlink(os.environ["UV"], uv)
"""
UV = r"""
import os, pathlib, sys
assert pathlib.Path("pyproject.toml").exists()
if sys.argv[1] == "venv":
  python = pathlib.Path(sys.argv[-1], "bin", "python")
  python.parent.mkdir(parents=True)
  os.symlink(os.environ["TRAINING"], python)
else:
  assert sys.argv[-1] == ".[tpu]", sys.argv
"""


@pytest.fixture
def cloud(bench):
  write_program(bench.root / "bin" / "gcloud", GCLOUD)
  write_program(bench.root / "bin" / "python3", PIP)
  bench.cloud = bench.root / "cloud"
  bench.cloud.mkdir()
  bench.environment |= {
    "CLOUD": str(bench.cloud),
    "UV": str(write_program(bench.root / "uv", UV)),
    "TRAINING": bench.environment["PYTHON"],
  }
  checkout = bench.root / "checkout"
  for name in ("delf_jax", "configs"):
    (checkout / name).mkdir(parents=True)
    (checkout / name / "__init__.py").touch()
  for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, checkout)
  bench.script = bench.edited(
    TPU_POD,
    zone="my-zone",
    project='"my project"',
    interval="0.1",
    patience="3",
    retry="0.1",
  )
  return bench


def calls(bench, *verbs: str) -> list[list[str]]:
  """Lists what gcloud was called with, of some verbs."""
  path = bench.cloud / "calls"
  lines = path.read_text().splitlines() if path.exists() else []
  return [call for call in map(json.loads, lines) if call[0] in verbs]


def test_tpu_pod_dry_run(cloud):
  status, output, _ = cloud.run(cloud.script, "--dry-run", *cloud.flags)
  assert status == 0 and not calls(cloud, "describe", "create", "ssh")
  words = shlex.split(output, comments=True)
  starts = [i for i, word in enumerate(words) if word == "gcloud"]
  commands = [
    words[start:end]
    for start, end in zip(starts, [*starts[1:], None], strict=True)
  ]
  everywhere = ["--zone=my-zone", "--project=my project"]
  assert all(command[-2:] == everywhere for command in commands)
  prefix = ["gcloud", "compute", "tpus", "tpu-vm"]
  assert commands[0][:-2] == [
    *prefix,
    "describe",
    "delf-jax",
    "--format=value(state)",
  ]
  assert commands[2][:-2] == [
    *prefix,
    "create",
    "delf-jax",
    "--accelerator-type=v5litepod-16",
    "--version=v2-alpha-tpuv5-lite",
    "--spot",
  ]
  assert commands[3][:-2] == [
    *prefix,
    "scp",
    "delf_jax.tar.gz",
    "delf-jax:delf_jax.tar.gz",
    "--worker=all",
  ]
  assert commands[6][:-2] == [*prefix, "delete", "delf-jax", "--quiet"]
  workers = ["--worker=0", "--worker=all", "--worker=all", "--worker=all"]
  shells = [command for command in commands if command[4] == "ssh"]
  assert [command[6] for command in shells] == workers
  for command in shells:
    remote = command[7].removeprefix("--command=")
    subprocess.run(["sh", "-n"], input=remote, text=True, check=True)


def test_tpu_pod_trains_on_all_hosts_across_a_preemption(cloud):
  cloud.does(host0=["wait"], host1=["wait"])
  (cloud.cloud / "preempt").touch()
  status, _, errors = cloud.run(cloud.script, *cloud.flags)
  assert status == 0, errors
  for name in ("host0-0", "host1-0", "host0-1", "host1-1"):
    argv = cloud.record(name)["argv"]
    assert argv == ["-m", "delf_jax.train", "--cluster", *cloud.flags]
  assert [call[0] for call in calls(cloud, "create", "delete")] == [
    "create",
    "delete",
    "create",
  ]
  for message in ("was preempted", "step 2", "trained in", "costs money"):
    assert message in errors
  unpacked = cloud.cloud / "host1" / "delf_jax"
  assert (unpacked / "configs" / "__init__.py").exists()


def test_tpu_pod_watches_what_runs_already_and_stops_it(cloud):
  cloud.does(host0=["wait"], host1=["wait"])
  first = cloud.start(cloud.script, *cloud.flags)
  cloud.record("host0-0"), cloud.record("host1-0")
  eventually(lambda: "step 2" in first.stderr_text())
  first.terminate()
  assert first.wait(timeout=20) == 130
  assert "what runs on the slice goes on" in first.stderr_text()

  status, _, errors = cloud.run(cloud.script, *cloud.flags, "--config.seed=1")
  assert status == 1 and "trains something else" in errors

  second = cloud.start(cloud.script, *cloud.flags)
  eventually(lambda: "runs already" in second.stderr_text())
  assert cloud.run(cloud.script, "--stop")[0] == 0
  assert second.wait(timeout=20) == 0
  assert "training was stopped" in second.stderr_text()
  assert len(calls(cloud, "create", "scp")) == 2

  status, _, errors = cloud.run(cloud.script, *cloud.flags)
  assert status == 0 and "training is finished" in errors
  assert len(calls(cloud, "create", "scp")) == 3


def test_tpu_pod_starts_again_what_is_gone(cloud):
  # Of host 0 alone, as after a restart for maintenance; host 1 waits for it.
  cloud.does(host0=["wait"], host1=["stubborn"])
  process = cloud.start(cloud.script, *cloud.flags)
  stubborn = cloud.record("host1-0")["pid"]
  os.kill(cloud.record("host0-0")["pid"], signal.SIGTERM)
  assert process.wait(timeout=30) == 0
  assert "starting it again" in process.stderr_text()
  assert "training is finished" in process.stderr_text()
  assert not is_alive(stubborn)
  cloud.record("host1-1")


def test_tpu_pod_shows_why_training_failed(cloud):
  cloud.does(host0=["fail"])
  status, _, errors = cloud.run(cloud.script, *cloud.flags)
  assert status == 1
  assert "error: step 2 went wrong" in errors
  assert errors.rstrip().endswith("the last lines of every host are above")
  assert len(calls(cloud, "scp")) == 1


def test_tpu_pod_waits_for_room(cloud):
  (cloud.cloud / "failures").write_text("RESOURCE_EXHAUSTED: no capacity\n" * 2)
  status, _, errors = cloud.run(cloud.script, *cloud.flags)
  assert status == 0
  assert errors.count("no slice yet") == 2


@pytest.mark.parametrize(
  ("failures", "message"),
  [
    ("PERMISSION_DENIED: not yours\n", "gcloud refuses"),
    ("RESOURCE_EXHAUSTED: no capacity\n" * 9, "no slice after 2 attempts"),
  ],
)
def test_tpu_pod_gives_up(cloud, failures, message):
  script = cloud.root / "checkout" / "launch" / "edited.sh"
  script.write_text(
    re.sub("max_creations=.*", "max_creations=2", cloud.script.read_text())
  )
  (cloud.cloud / "failures").write_text(failures)
  status, _, errors = cloud.run(script, *cloud.flags)
  assert status == 1
  assert message in errors.splitlines()[-1]


def test_tpu_pod_gives_up_on_a_slice_that_is_not_ready(cloud):
  (cloud.cloud / "state").write_text("REPAIRING")
  status, _, errors = cloud.run(cloud.script, *cloud.flags)
  assert status == 1
  assert "delf-jax is REPAIRING for too long" in errors


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (CONFIG, "must be an absolute path"),
    (["--workdir", "gs://bucket/run"], "gs://bucket/run is no directory"),
  ],
)
def test_tpu_pod_wants_a_directory_of_the_hosts(cloud, words, message):
  status, output, errors = cloud.run(cloud.script, *words)
  assert status == 1 and not output
  assert message in errors and errors.count("\n") == 1


def test_tpu_pod_wants_a_zone(bench):
  status, _, errors = bench.run(TPU_POD, *bench.flags)
  assert status == 1
  assert "no zone is set" in errors and errors.count("\n") == 1
