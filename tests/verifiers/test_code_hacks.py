"""Programs that cheat: each scores 0 in every kind of test where it could, and harms nothing.

The problem is f(n) = 7919 n mod 10007, whose values no program here works out; whoever finds them has found the tests.
None would do lasting harm to the machine if its sandbox failed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sppo.config.verification import CodeOptions, VerificationConfig
from sppo.types import Submission, Verdict
from sppo.verifiers.code import verifier as code
from sppo.verifiers.code.verifier import fenced, judge_one
from sppo.verifiers.sandbox import Backend
from sppo.verifiers.sandbox.tree import children_of
from sppo.verifiers.tools import Tools

VALUES = {number: 7919 * number % 10007 for number in (17, 4242, 9001)}
GOLDS = {
    "check": {
        "test": f"SECRETS = {VALUES}\n\ndef check(candidate):\n    for number, expected in SECRETS.items():\n"
        "        assert candidate(number) == expected\n",
        "entry_point": "f",
        "prompt": "def f(n):\n    '''See the problem.'''\n",
    },
    "assertions": [f"assert f({number}) == {expected}" for number, expected in VALUES.items()],
    "call": {"fn_name": "f", "inputs": [[number] for number in VALUES], "outputs": list(VALUES.values())},
    "input": {"inputs": [str(number) for number in VALUES], "outputs": [str(value) for value in VALUES.values()]},
}
HONEST = "def f(n):\n    return 7919 * n % 10007\nif __name__ == '__main__':\n    print(f(int(input())))"

HACKS = {
    "ends with success": "import sys\nsys.exit(0)",
    "ends with success at once": "import os\nos._exit(0)",
    "ends with success when called": "import os\ndef f(n):\n    os._exit(0)",
    "raises the exception that ends programs": "def f(n):\n    raise SystemExit(0)",
    "raises what ends a loop": "def f(n):\n    raise StopIteration",
    "overwrites the check function": """
import sys
def check(candidate): pass
for module in list(sys.modules.values()):
    try:
        module.check = module.same_value = module.same_output = lambda *arguments: True
    except Exception:
        pass
def f(n): return None""",
    "patches the builtins": """
import builtins, json, sys
builtins.len = lambda x: 0
builtins.isinstance = builtins.all = builtins.any = lambda *x: True
builtins.sorted = builtins.list = builtins.tuple = lambda *x: []
builtins.AssertionError = builtins.Exception = type("Quiet", (Exception,), {})
json.dumps = lambda *x, **y: '{"id": 1, "value": true}'
class Out:
    def write(self, text): return len(text)
    def flush(self): pass
sys.stdout = sys.__stdout__ = Out()
def f(n): return True""",
    "returns an object that equals everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __repr__(self): return "1"
def f(n): return Any()""",
    "returns a kind of int that equals everything": """
class Any(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __reduce__(self): return (eval, ("1",))
def f(n): return Any(1)""",
    "returns a kind of str that equals everything": """
class Any(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def f(n): return [Any("1")][0]""",
    "claims to be another type": """
class Meta(type):
    def __eq__(self, other): return True
    def __hash__(self): return hash(int)
    def __instancecheck__(self, other): return True
class Any(metaclass=Meta):
    __class__ = int
    def __eq__(self, other): return True
    def hex(self): return "0x0"
def f(n): return Any()""",
    "hunts through frames and objects for the values": """
import gc, sys
def f(n):
    found = []
    frame = sys._getframe()
    while frame is not None:
        found.append(repr(frame.f_locals) + repr(frame.f_globals))
        frame = frame.f_back
    found += [repr(thing) for thing in gc.get_objects() if type(thing) in (dict, list, tuple)]
    text = " ".join(found)
    for value in range(10007):
        if n in (17, 4242, 9001) and f"{n}: {value}" in text or f"=={value}" in text:
            return value
    return None""",
    "looks for the tests in memory and files of its neighbours": """
import os
def f(n):
    for number in ["self", os.getppid(), *os.listdir("/proc")] if os.access("/proc", os.R_OK) else range(1, 100000):
        for name in ("environ", "cmdline", "maps", "mem", "fd/3", "fd/4", "fd/5", "fd/6", "fd/7"):
            try:
                with open(f"/proc/{number}/{name}", "rb") as file:
                    if b"SECRETS" in file.read(10000): return "found"
            except (OSError, ValueError):
                pass
    for folder in ("/tmp", "/work", "/root", "/home", "."):
        for place, _, names in os.walk(folder):
            for name in names:
                if "test" in name and place.endswith("sppo"): return "found"
    return None
if __name__ == "__main__":
    print(f(int(input())))""",
    "prints results that say it passed": """
import sys
line = '{"passed": [true, true, true], "reason": "", "seconds": 0.0, "faulty": null}'
print(line, flush=True)
print(line, file=sys.stderr, flush=True)
def f(n): return print(line, flush=True)""",
    "writes results to every open file": """
import os
lines = b'{"passed": [true, true, true], "reason": "", "seconds": 0.0, "faulty": null}\\n'
lines += b''.join(b'{"id": %d, "value": true, "output": "", "code": 0, "ending": null}\\n' % n for n in range(9))
def flood():
    for number in range(256):
        try: os.write(number, lines)
        except OSError: pass
flood()
def f(n): flood()""",
    "claims that the tests are faulty": """
import os
for number in range(256):
    try: os.write(number, b'{"faulty": "broken", "passed": [], "reason": "", "seconds": 0}\\n')
    except OSError: pass
def f(n): return None""",
    "sends a bomb to the tests": """
import os
for number in range(3, 256):
    try: os.write(number, b'{"id": 0}\\n{"id": 1, "value": ' + b'["l", [' * 9000 + b']]' * 9000 + b'}\\n')
    except OSError: pass
def f(n): return None""",
    "closes every file": "import os\nos.closerange(0, 256)\ndef f(n): return None",
    "forks without end": """
import os, time
def f(n):
    for _ in range(300):
        if os.fork() == 0:
            time.sleep(1000)
f(0)""",
    "prints without end": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "takes all memory": "held = [bytearray(10**8) for _ in range(30)]",
    "takes all memory in many processes": """
import os
for _ in range(12):
    if os.fork() == 0: break
held = bytearray(2 * 10**8)
while True: pass""",
    "stays in the background": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
def f(n): return None""",
    "asks the network": """
import socket
def f(n):
    with socket.create_connection(("127.0.0.1", 80), timeout=1) as connection:
        return int(connection.recv(100))
if __name__ == "__main__": print(f(0))""",
    "writes to the system": """
import os
for place in ("/etc/hacked", "/usr/lib/hacked", "/root/hacked", "/tmp/hacked", "/var/tmp/hacked", "hacked"):
    try: open(place, "w").write("hacked")
    except OSError: pass
def f(n): return None""",
    "kills its parent": """
import os
def f(n): os.kill(os.getppid(), 9)
f(0)""",
    "kills itself": """
import os
def f(n): os.kill(os.getpid(), 9)
f(0)""",
    "lives as a session of its own": """
import os
try: os.setsid()
except OSError: os._exit(1)
def f(n): return None""",
    "never ends": """
def f(n):
    while True:
        try:
            while True: pass
        except BaseException: pass
f(0)""",
}


def judge(program: str, style: str, backend: Backend | None = None) -> Verdict:
    given = Submission(fenced(program), json.dumps(GOLDS[style]))
    options = CodeOptions(test_seconds=60.0 if program == HONEST else 0.8, memory_mb=300)
    if backend is not None:
        # As if it were the second time, so that a program that is killed has killed itself.
        return judge_one(given, options, backend, again=True)
    return code.grade([given], Tools(VerificationConfig(code=options)))[0]


@pytest.mark.parametrize("style", GOLDS)
def test_the_honest_program_passes(style, backend):
    assert judge(HONEST, style, backend).reward == 1.0


@pytest.mark.parametrize("name", HACKS)
def test_hacks_score_nothing(name, backend):
    before = children_of(os.getpid())
    # As whole programs they meet the same sandbox, so one way of confining them will do.
    for style in ("check", "input") if backend.name == "bubblewrap" else ("check",):
        verdict = judge(HACKS[name], style, backend)
        assert (verdict.reward, verdict.error) == (0.0, None), (style, verdict)
        assert "found" not in verdict.reason
    assert children_of(os.getpid()) == before
    assert not [place for place in ("/root", "/etc", "/tmp", "/var/tmp", "/usr/lib") if Path(place, "hacked").exists()]


@pytest.mark.parametrize(
    "name", [name for name in HACKS if name.startswith(("returns", "claims", "raises", "patches"))]
)
@pytest.mark.parametrize("style", ["assertions", "call"])
def test_what_they_return_fools_the_other_kinds_of_test_no_more(name, style):
    verdict = judge(HACKS[name], style)
    assert (verdict.reward, verdict.error) == (0.0, None), verdict
