"""The pool: bombs, crashes and threads cost one item each, and scripts of any form can use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from sppo.errors import ConfigError
from sppo.types import Verdict
from sppo.verifiers import get_verifier
from sppo.verifiers.math.verifier import slow
from sppo.verifiers.pool import Item, VerifierPool
from sppo.verifiers.verify import verify

GOOD = (slow, r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
WRONG = (slow, r"\boxed{\sqrt{9}+x}", r"2\sqrt{2}")


def boxed(answer: str) -> Item:
    return (slow, rf"\boxed{{{answer}}}", r"2\sqrt{2}")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, time_limit=60.0, memory_limit_mb=1024) as running:
        assert running.run([GOOD])[0].reward == 1.0
        yield running


def worker_ids(pool: VerifierPool) -> list[int]:
    return list(pool._pool._pool_manager.worker_manager.workers)


def test_verdicts_come_back_in_order(pool):
    verdicts = pool.run([GOOD, WRONG] * 10)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0] * 10
    assert pool.run([]) == []


def test_bombs_end_and_touch_only_themselves(pool):
    bombs = ["9^{9^{9^9}}", "9^9^9^9", "(10^{10})!", "x^{(10^{10})!}", r"\frac{1}{" * 150 + "x" + "}" * 150]
    verdicts = pool.run([GOOD, *(boxed(bomb) for bomb in bombs), GOOD], 3.0)
    assert verdicts[0].reward == verdicts[-1].reward == 1.0
    for verdict in verdicts[1:-1]:
        assert verdict.reward != 1.0
        assert (verdict.reward is None) == (verdict.error is not None)
    assert verdicts[1].error == "timed out after 3 s"
    assert pool.run([GOOD])[0].reward == 1.0


def test_an_item_that_ends_well_just_when_it_is_looked_at_did_not_time_out(pool):
    class Late(Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> Verdict:
            if not self.done():
                self.set_result(Verdict(1.0))
                raise FutureTimeout
            return super().result(timeout)

    assert pool._await(pool._started(), Late(), 1.0) == Verdict(1.0)


def test_deep_nesting_and_a_megabyte_never_reach_sympy(pool):
    for answer in (r"\frac{1}{" * 500 + "x" + "}" * 500, "1+" * 500_000 + "1"):
        verdict = pool.run([boxed(answer)])[0]
        assert verdict.reward == 0.0
        assert "longer than" in verdict.reason


def test_a_killed_worker_loses_only_its_item(pool):
    pool.run([GOOD])
    results: list[Verdict] = []
    bomb = boxed("9^{9^{9^9}}")
    thread = threading.Thread(target=lambda: results.extend(pool.run([bomb, GOOD, GOOD], 300.0)))
    thread.start()
    busy: list[int] = []
    while not busy:
        tasks = list(pool._pool._pool_manager.task_manager.tasks.values())
        busy = [task.worker_id for task in tasks if task.started and task.worker_id and bomb in task.payload.args]
        assert thread.is_alive(), "the bomb ended by itself"
        time.sleep(0.05)
    os.kill(busy[0], signal.SIGKILL)
    thread.join(300)
    assert results[0].reward is None
    assert "died" in results[0].error
    assert [verdict.reward for verdict in results[1:]] == [1.0, 1.0]


def test_killed_idle_workers_are_replaced(pool):
    pool.run([GOOD])
    for process_id in worker_ids(pool):
        os.kill(process_id, signal.SIGKILL)
    assert [verdict.reward for verdict in pool.run([GOOD, WRONG])] == [1.0, 0.0]


def test_memory_is_limited(pool):
    too_much = pool._started().schedule(bytearray, args=[2 * 2**30])
    assert isinstance(too_much.exception(timeout=300), MemoryError)
    assert pool.run([GOOD])[0].reward == 1.0


def test_from_many_threads_at_once(pool):
    rewards: list[float | None] = []
    threads = [
        threading.Thread(target=lambda: rewards.extend(verdict.reward for verdict in pool.run([GOOD, GOOD])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert rewards == [1.0] * 16


def test_verify_works_in_a_thread_and_in_the_main_one():
    assert verify(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", time_limit=60).reward == 1.0
    seen: list[Verdict] = []
    thread = threading.Thread(target=lambda: seen.append(verify(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", time_limit=60)))
    thread.start()
    thread.join(300)
    assert seen[0].reward == 1.0


def test_verify_takes_numbers_for_golds_and_refuses_what_is_no_text():
    assert verify(r"so \boxed{73}", 73).reward == 1.0
    with pytest.raises(ConfigError, match="response is a NoneType, but must be text"):
        verify(None, "1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gold is a list"):
        verify("1", ["1"])  # type: ignore[arg-type]


def test_verify_takes_the_other_verifiers():
    assert verify("+18-35+27#10", "10", "final_answer").reward == 1.0
    assert verify("+18-35+27#10", "10", "final_answer", finished=False).reward == 0.0
    with pytest.raises(ConfigError, match="Did you mean 'math'"):
        verify("5", "5", "maths")
    with pytest.raises(ConfigError, match=r"Known: .*exact, final_answer, .*math, minerva"):
        get_verifier("zzz")


def test_a_closed_pool_says_so_and_closes_twice():
    pool = VerifierPool()
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.run([GOOD])


def test_nonsense_sizes_are_refused():
    with pytest.raises(ValueError, match="workers >= 1"):
        VerifierPool(workers=0)


SCRIPT = r"""
print("top level runs")
from sppo.verifiers.verify import verify
class Mine: pass
print(verify(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", time_limit=60).reward, verify("\\boxed{5}", "5").reward)
import __main__, pickle
pickle.loads(pickle.dumps(Mine()))
print(__main__.__dict__.get("__file__", "no file") is not None, __main__.__spec__)
"""


@pytest.mark.parametrize("how", ["script", "stdin", "command"])
def test_plain_scripts_without_a_main_guard(how, tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(SCRIPT)
    arguments, given = {
        "script": ([str(path)], None),
        "stdin": (["-"], SCRIPT),
        "command": (["-c", SCRIPT], None),
    }[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["top level runs", "1.0 1.0", "True None"]
    assert done.returncode == 0


def test_importing_verifiers_does_not_import_sympy_or_torch():
    code = "import sys, sppo.verifiers, sppo.verifiers.verify, sppo.verifiers.grading\n"
    code += "print([m for m in ('torch', 'sympy', 'math_verify', 'pebble') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_workers_outlive_what_is_sent_to_their_whole_group(pool):
    pool.run([GOOD])
    before = worker_ids(pool)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for worker in before:
            os.kill(worker, number)
    assert pool.run([GOOD, WRONG])[0].reward == 1.0
    assert worker_ids(pool) == before
