"""The sandbox, in each of the ways this machine has: what programs may not do, the limits, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sppo.errors import ConfigError
from sppo.verifiers.sandbox import (
    BACKENDS,
    Backend,
    Limits,
    Outcome,
    SandboxError,
    backends,
    open_sandbox,
    process,
    run,
)
from sppo.verifiers.sandbox.backends import Confinement, choose
from sppo.verifiers.sandbox.process import TICK, Clock
from sppo.verifiers.sandbox.run import probe
from sppo.verifiers.sandbox.supervisor import kill_user
from sppo.verifiers.sandbox.tree import Usage, children_of

SHORT = Limits(cpu_seconds=1, wall_seconds=10, memory_mb=256)
"""For programs that run into a limit."""
ENOUGH = Limits(cpu_seconds=60, wall_seconds=60, memory_mb=256)
"""For those that end by themselves, on however slow a machine."""


@pytest.fixture
def trial(backend: Backend):
    def run_here(program: str, limits: Limits = ENOUGH, **more: object) -> Outcome:
        return run(program, backend=backend, limits=limits, **more)  # type: ignore[arg-type]

    before = children_of(os.getpid())
    yield run_here
    assert children_of(os.getpid()) == before, "every process has been waited for"


def test_a_program_reads_its_arguments_files_and_input_and_its_outputs_are_apart(trial):
    program = (
        "import sys\n"
        "print(__name__, sys.argv[1:], open('a.txt').read(), sys.stdin.read())\n"
        "print('no', file=sys.stderr)\n"
        "sys.exit(7)"
    )
    outcome = trial(program, arguments=["x", "y"], files={"a.txt": b"file"}, stdin=b"typed")
    assert (outcome.ending, outcome.exit_code) == ("exited", 7)
    assert outcome.stdout == b"__main__ ['x', 'y'] file typed\n"
    assert outcome.stderr == b"no\n"


def test_the_standard_library_is_there_and_nothing_that_is_installed(trial):
    program = (
        "import asyncio, concurrent.futures, ctypes, decimal, encodings.idna, http.client, json, random, sqlite3, ssl\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "try:\n    import torch\n"
        "except ImportError:\n    print('fine')"
    )
    assert trial(program).stdout == b"fine\n"


def test_it_runs_as_a_user_that_is_nobody(trial):
    outcome = trial("import os; print(os.getuid(), os.getgid(), os.getgroups())")
    user, group, groups = outcome.stdout.decode().split(maxsplit=2)
    assert user == group != "0"
    assert groups.strip() in ("[]", "[65534]")
    assert trial("import os; os.setuid(0)").stderr.endswith(b"PermissionError: [Errno 1] Operation not permitted\n")


def test_nothing_of_the_caller_can_be_read(trial, tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    os.chmod(secret, 0o644)
    monkeypatch.setenv("API_KEY", "secret")
    places = [secret, Path.home() / ".bashrc", Path(__file__), "/etc/passwd", "/etc/hostname"]
    program = (
        "import os\n"
        f"for place in {[str(place) for place in places]}:\n"
        "    try:\n        open(place).read(); print('read', place)\n"
        "    except OSError:\n        pass\n"
        "print(sorted(os.environ))"
    )
    output = trial(program).stdout.decode()
    assert "read" not in output
    assert set(eval(output)) <= {"PATH", "HOME", "LANG", "PYTHONHASHSEED", "PWD", "LC_CTYPE"}


def test_other_processes_cannot_be_seen_read_or_signalled(trial):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    program = (
        "import os\n"
        f"for number in ({os.getpid()}, os.getppid(), {victim.pid}):\n"
        "    for name in ('mem', 'environ', 'maps', 'cmdline', 'fd/0'):\n"
        "        try:\n"
        "            text = open(f'/proc/{number}/{name}', 'rb').read(100)\n"
        "            if b'pytest' in text or b'time.sleep' in text: print('read', number, name)\n"
        "        except OSError:\n            pass\n"
        f"for number in ({os.getpid()}, {victim.pid}):\n"
        "    try:\n        os.kill(number, 0); print('reached', number)\n"
        "    except OSError:\n        pass\n"
    )
    try:
        outcome = trial(program)
        assert (outcome.exit_code, outcome.stdout) == (0, b"")
    finally:
        victim.kill()
        victim.wait()


def test_nothing_outside_its_own_temporary_folder_can_be_written(trial, backend):
    places = ["/x", "/usr/lib/x", "/dev/shm/x", "/etc/x", "/var/tmp/x", f"{Path(__file__).parent}/x"]
    program = (
        f"import os\nfor place in {places}:\n"
        "    try:\n        open(place, 'w').write('x'); print('wrote', place)\n"
        "    except OSError:\n        pass\n"
        "    try:\n        os.remove(place); print('removed', place)\n"
        "    except OSError:\n        pass\n"
        "try:\n    open('/tmp/mine', 'w').write('x'); print('temporary')\n"
        "except OSError:\n    pass\n"
    )
    assert trial(program).stdout == (b"temporary\n" if backend.temporary_folder else b"")
    assert not Path("/tmp/mine").exists()


def test_there_is_no_network(trial):
    program = (
        "import socket\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, 40):\n"
        "    try:\n        socket.socket(family, socket.SOCK_STREAM); print('opened', family)\n"
        "    except OSError:\n        pass\n"
        "print('done')"
    )
    assert trial(program).stdout == b"done\n"


def test_system_calls_that_would_widen_the_kernel_are_denied(trial):
    program = (
        "import ctypes, errno, os\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        "def refused(*arguments):\n"
        "    ctypes.set_errno(0)\n"
        "    result = call(*arguments)\n"
        "    return result == -1 and ctypes.get_errno() in (errno.EPERM, errno.EACCES, errno.ENOSYS)\n"
        "x86 = os.uname().machine == 'x86_64'\n"
        "numbers = {'unshare': (272, 97), 'ptrace': (101, 117), 'mount': (165, 40), 'bpf': (321, 280),\n"
        "           'keyctl': (250, 219), 'memfd_create': (319, 279), 'io_uring_setup': (425, 425),\n"
        "           'setsid': (112, 157), 'sendmsg': (46, 211), 'setsockopt': (54, 208), 'semop': (65, 193),\n"
        "           'inotify_add_watch': (254, 27)}\n"
        "print([name for name, pair in numbers.items() if not refused(pair[0 if x86 else 1], 0x10000000, 0, 0, 0)])\n"
        "print(refused(56 if x86 else 220, 0x10000000 | 17, 0, 0, 0, 0))\n"
        "print(refused(435, 0, 0))\n"
        "import resource\n"
        "print(refused(302 if x86 else 261, os.getppid(), resource.RLIMIT_CPU, 0, 0))\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0] > 0)"
    )
    assert trial(program).stdout.split() == [b"[]", b"True", b"True", b"True", b"True"]


def test_no_more_processes_than_allowed_and_none_outlives_the_run(trial):
    program = (
        "import os, time\n"
        "count = 0\n"
        "try:\n"
        "    for _ in range(300):\n"
        "        if os.fork() == 0:\n"
        "            os.setpgid(0, 0)\n"
        "            time.sleep(1000)\n"
        "        count += 1\n"
        "except OSError:\n"
        "    print(count)"
    )
    outcome = trial(program, replace(ENOUGH, processes=8))
    assert outcome.ending == "exited"
    assert 5 <= int(outcome.stdout) <= 8


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("while True: pass", "timed out"),
        ("while True: print('x' * 1000)", "too much output"),
        (
            "import os\nfor _ in range(6):\n    if os.fork() == 0: x = bytearray(10**8)\nwhile True: pass",
            "too much memory",
        ),
    ],
    ids=["cpu", "output", "memory of many"],
)
def test_limits_end_a_program(trial, program, ending):
    outcome = trial(program, SHORT)
    assert outcome.ending == ending
    assert outcome.exit_code != 0
    assert len(outcome.stdout) <= SHORT.output_bytes


def test_cpu_time_ends_a_program_that_ignores_the_signal():
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(program, limits=SHORT, backend=BACKENDS["none"]).exit_code == 128 + 9


SLEEPERS = (
    "import os, time\n"
    "os.write(1, b'%d' % os.getuid())\n"
    "if os.fork() == 0: os.setpgid(0, 0)\n"
    "os.close(1)\nos.close(2)\n"
    "time.sleep(1000)"
)


def test_wall_time_ends_a_program_that_sleeps_and_its_children(trial):
    outcome = trial(SLEEPERS, Limits(wall_seconds=3))
    assert (outcome.ending, outcome.exit_code != 0) == ("timed out", True)
    assert outcome.seconds >= 3
    user = int(outcome.stdout)  # it had begun
    if user in backends.spare_users():
        assert _processes_of(user) == []


def test_a_sandbox_that_is_killed_from_outside_is_no_end_of_the_program(trial, backend):
    # In bubblewrap the program's own parent, the first process of the namespace, stands in between.
    depth = {"bubblewrap": 3, "landlock": 2}[backend.name]
    before = children_of(os.getpid())
    below: list[int] = []

    def kill_it() -> None:
        def stands() -> bool:
            below[:] = [
                process for child in children_of(os.getpid()) if child not in before for process in _below(child)
            ]
            return len(below) == depth

        _until(stands)
        (sandbox,) = set(children_of(os.getpid())) - set(before)
        os.kill(sandbox, signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    with pytest.raises(SandboxError, match=f"{backend.name}: something outside killed it"):
        trial(SLEEPERS, ENOUGH)
    killer.join()
    assert len(below) == depth
    _until(lambda: not any(map(_lives, below)))


def test_memory_and_file_size_are_errors_inside_the_program(trial, backend):
    assert b"MemoryError" in trial("x = bytearray(10**9)").stderr
    if backend.temporary_folder:
        written = "file = open('/tmp/x', 'wb')\nwhile True: file.write(bytes(2**20))"
        assert b"OSError" in trial(written).stderr
        many = "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(bytes(2**20)); n += 1"
        assert b"No space left" in trial(many).stderr


HOARDERS = {
    "files that are empty": """
import os
for number in range(10**9): os.close(os.open(f'/tmp/{number}', os.O_CREAT | os.O_WRONLY))
""",
    "sockets": """
import os, socket, time
held = []
for _ in range(15):
    if os.fork() == 0: break
while True:
    try:
        pair = socket.socketpair()
        held.append(pair)
        pair[0].setblocking(False)
        while True: pair[0].send(bytes(2**16))
    except BlockingIOError: pass
    except OSError: time.sleep(1000)
""",
    "pipes": """
import os, time
for _ in range(15):
    if os.fork() == 0: break
while True:
    try:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        while True: os.write(writing, bytes(2**16))
    except BlockingIOError: pass
    except OSError: time.sleep(1000)
""",
}


@pytest.mark.parametrize("name", HOARDERS)
def test_memory_that_the_kernel_holds_for_a_program_counts(trial, backend, name):
    if not backend.temporary_folder and "files" in name:
        pytest.skip("it can make no files")
    assert trial(HOARDERS[name], Limits(60, 20, memory_mb=96)).ending == "too much memory"


def test_memory_that_would_outlive_its_mapping_cannot_be_had(trial):
    program = (
        "import mmap\n"
        "try:\n    mmap.mmap(-1, 4096); print('shared')\n"
        "except PermissionError:\n    pass\n"
        "try:\n    mmap.mmap(open('/dev/zero', 'r+b').fileno(), 4096); print('shared')\n"
        "except OSError:\n    pass\n"
        "import fcntl, os\n"
        "try:\n    fcntl.fcntl(os.pipe()[0], 1031, 2**20); print('enlarged')\n"
        "except PermissionError:\n    pass\n"
        "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); print('private')"
    )
    assert trial(program).stdout == b"private\n"


def test_nothing_that_others_may_write_to_can_be_marked(trial):
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        os.chmod(file.name, 0o666)
        os.utime(file.name, (1000, 1000))
        places = [file.name, "/dev/null", "/dev/urandom"]
        before = [_marks_of(place) for place in places]
        program = (
            "import os\n"
            f"for place in {places}:\n"
            "    for mark in (lambda: os.utime(place), lambda: os.setxattr(place, 'user.answer', b'42')):\n"
            "        try:\n            mark()\n"
            "        except OSError:\n            pass\n"
            "print('done')"
        )
        assert trial(program).stdout == b"done\n"
        assert [_marks_of(place) for place in places] == before


def _marks_of(place: str) -> tuple[object, ...]:
    found = os.stat(place)
    return found.st_mtime_ns, found.st_ctime_ns, os.listxattr(place)


def test_a_file_of_ones_own_can_be_copied_with_its_times(backend):
    program = "import shutil\nopen('a', 'w').write('x')\nprint(open(shutil.copy2('a', 'b')).read())"
    if backend.temporary_folder:
        assert run(program, backend=backend, limits=ENOUGH).stdout == b"x\n"


def _usage(busy: bool, waited_for: float = 0.0, **seconds: float) -> Usage:
    return Usage(0, busy, {ord(name): used for name, used in seconds.items()}, waited_for)


def test_cpu_time_between_two_looks():
    before = _usage(True, 1.0, a=2.0, b=0.5)
    assert _usage(True, 1.0, a=2.25, b=0.5).since(before) == 0.25
    assert _usage(True, 1.0, a=2.0, b=0.5, c=0.125).since(before) == 0.125, "a new process"
    # b ended and was waited for; of its 0.75 s, 0.5 were seen before.
    assert _usage(True, 1.75, a=2.0).since(before) == 0.25
    assert _usage(True, 1.0, a=2.0).since(before) == 0.0, "b ended, and nobody waited for it"


def test_the_clock_stands_while_a_program_waits_for_a_processor(monkeypatch):
    """Hand-made looks: what a neighbour takes from a program is not charged to it."""
    looks = iter([
        _usage(True, a=1.0),
        _usage(True, a=1.25),  # it had an eighth of a processor
        _usage(True, a=1.25),  # none at all
        _usage(True, a=1.25, b=3.5),  # two processors
        _usage(False, a=1.25, b=3.5),  # all sleep
        None,  # a system that doesn't say
    ])  # fmt: skip
    run_of = SimpleNamespace(usage=lambda: next(looks))
    times = iter([0.0, 1.0, 2.0, 4.0, 6.0, 6.0625, 8.0])
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: next(times)))
    clock = Clock(run_of)
    assert [clock.look() for _ in range(6)] == [0.0, 0.25, 0.0, 3.5, 0.0625, 1.9375]


def test_a_late_look_does_not_take_all_the_time_before_it_for_sleep(monkeypatch):
    run_of = SimpleNamespace(usage=lambda: _usage(False, a=1.0))
    times = iter([0.0, 1.0, 60.0])
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: next(times)))
    clock = Clock(run_of)
    assert [clock.look(), clock.look()] == [0.0, 2 * TICK]


def test_many_at_once_from_threads(backend):
    def one(number: int) -> bytes:
        return run("import sys; print(int(sys.argv[1]) ** 2)", [str(number)], backend=backend, limits=ENOUGH).stdout

    before = children_of(os.getpid())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(12))) == [b"%d\n" % number**2 for number in range(12)]
    assert children_of(os.getpid()) == before


def test_nothing_is_left_when_the_caller_is_killed(backend):
    program = (
        "import sys\n"
        "from sppo.verifiers.sandbox import BACKENDS, Limits, run\n"
        f"run('import os, time; os.fork(); time.sleep(1000)', limits=Limits(cpu_seconds=77),"
        f" backend=BACKENDS[{backend.name!r}])\n"
    )
    # Below the caller: the sandbox, in bubblewrap the first process of its namespace, the program, and its child.
    depth = {"bubblewrap": 4, "landlock": 3}[backend.name]
    caller = subprocess.Popen([sys.executable, "-c", program])
    _until(lambda: len(_below(caller.pid)) == depth)
    below = _below(caller.pid)
    caller.kill()
    caller.wait()
    _until(lambda: not any(map(_lives, below)))


def _processes_of(user: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # gone since it was listed
            continue
        found += [int(fields["Pid"])] if fields["Uid"].split()[0] == str(user) else []
    return found


def _below(process: int) -> list[int]:
    """All that a process started, and what those started."""
    return [found for child in children_of(process) for found in (child, *_below(child))]


def _lives(process: int) -> bool:
    """Whether a process is there and more than a zombie, which has no command line."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    """Waits; the limit is for what never comes."""
    event = threading.Event()
    for _ in range(4800):
        if condition():
            return
        event.wait(0.025)
    raise AssertionError("it never came to be")


def test_a_sandbox_that_cannot_start_is_an_error_of_its_own():
    broken = replace(BACKENDS["none"], confine=lambda *_: Confinement(("/nonexistent",), {"user": None}))
    with pytest.raises(SandboxError, match="could not be started"):
        run("print(1)", backend=broken)
    false = shutil.which("false") or "false"
    failing = replace(BACKENDS["none"], confine=lambda *_: Confinement((false,), {"user": None}))
    with pytest.raises(SandboxError, match="before the program began"):
        run("print(1)", backend=failing)


def test_without_a_sandbox_code_is_refused_unless_that_was_allowed():
    def nothing_works(backend: Backend) -> str:
        return "it does not work here: no namespaces"

    with pytest.raises(ConfigError, match=r"Install bubblewrap.*say so: --unsafe-code, or"):
        choose(False, nothing_works)
    assert choose(True, nothing_works).name == "none"
    assert choose(False, lambda backend: None if backend.name == "landlock" else "no").name in ("landlock",)


def test_the_best_sandbox_is_chosen_and_kept():
    try:
        best = open_sandbox()
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    assert best.name == next(name for name, found in BACKENDS.items() if not (found.unavailable() or probe(found)))
    assert open_sandbox(unsafe_code=True) is best


def test_no_two_runs_of_a_process_share_a_user(monkeypatch):
    monkeypatch.setattr(backends, "spare_users", lambda: range(60_001, 60_101))
    # Every second one is that of whoever kills the processes of the one before.
    assert sorted(backends.next_user() for _ in range(50)) == list(range(60_001, 60_101, 2))


@pytest.mark.skipif(not backends.spare_users(), reason="only root can become another user")
def test_no_program_is_quick_enough_to_kill_its_killer_first(monkeypatch):
    """As on kernels where landlock keeps no signal in: nothing but its user confines this program."""
    user = backends.next_user()
    reading, writing = os.pipe()
    program = os.fork()
    if program == 0:
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        signal.alarm(300)
        os.write(writing, b"1")
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
    assert os.read(reading, 1) == b"1"
    real = os.kill

    def late(process: int, number: int) -> None:
        time.sleep(0.3)
        real(process, number)

    monkeypatch.setattr(os, "kill", late)
    kill_user(user)
    monkeypatch.undo()
    try:
        _until(lambda: os.waitid(os.P_PID, program, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    finally:
        os.kill(program, signal.SIGKILL)
        os.waitpid(program, 0)
        os.close(reading)
        os.close(writing)


def test_unsafe_code_still_has_limits():
    none = BACKENDS["none"]
    assert run("print(1 + 1)", backend=none).stdout == b"2\n"
    assert run("while True: pass", backend=none, limits=SHORT).ending == "timed out"
    assert run("import time; time.sleep(100)", backend=none, limits=Limits(wall_seconds=0.3)).ending == "timed out"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_users_who_are_not_root_have_bubblewrap_too(tmp_path):
    python = "/usr/bin/python3"
    if BACKENDS["bubblewrap"].unavailable() or not Path(python).exists():
        pytest.skip("needs bubblewrap, and a Python that every user may run")
    source = tmp_path / "sppo"
    (source / "verifiers").mkdir(parents=True)
    home = Path(__file__).resolve().parents[2] / "src" / "sppo"
    for name in (
        "errors.py",
        *(f"verifiers/sandbox/{file.name}" for file in (home / "verifiers/sandbox").glob("*.py")),
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((home / name).read_bytes())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o055)
    program = (
        "from sppo.verifiers.sandbox import *\n"
        "bomb = '''import os, time\nn = 0\ntry:\n  for _ in range(300):\n"
        "    if os.fork() == 0: time.sleep(99)\n    n += 1\n"
        "except OSError: print(os.getuid(), n)'''\n"
        "print(open_sandbox().name, run(bomb, limits=Limits(processes=8)).stdout)\n"
        "first = '''for name in ('mem', 'environ', 'maps'):\n"
        "  try: print(open(f'/proc/1/{name}', 'r+b' if name == 'mem' else 'rb').fileno())\n"
        "  except PermissionError: print('closed')'''\n"
        "print(run(first).stdout)\n"
        "hoard = '''import socket, time\nheld = [socket.socketpair() for _ in range(120)]\ntime.sleep(1000)'''\n"
        "print(run(hoard, limits=Limits(60, 20, memory_mb=48)).ending)\n"
        "hoard = '''import os\nfor n in range(10**9): os.close(os.open(f'/tmp/{n}', os.O_CREAT))'''\n"
        "print(run(hoard, limits=Limits(60, 20, memory_mb=64)).ending)\n"
    )
    done = subprocess.run(
        [python, "-c", program], user=12345, group=12345, extra_groups=[], cwd="/", capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    if "namespace" in done.stderr:
        pytest.skip("users who are not root may not make namespaces here")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bubblewrap b'65534 "), done.stderr
    assert lines[1:] == ["b'closed\\nclosed\\nclosed\\n'", "too much memory", "too much memory"], done.stderr
