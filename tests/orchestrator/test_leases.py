"""Leases: one holder at a time, taken over when it is gone, lost by one that was suspended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.leases import BeatLeases, FolderNotes, LeaseHeld, LeaseLost, LockLeases
from orchestrator.store import StageStore, digest, open_store
from retrieval.errors import InputError

STAGE = "a" * 64
LIMIT = 12.0
"""Seconds without a sign of life, where a test does not choose: one a second."""
ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def elsewhere(notes: FolderNotes, generation: int = 1, **record: object) -> None:
    """Write what a holder on another machine would."""
    text = {"machine": "other", "host": "other", "pid": 1, "started": 1.0, "token": "t", "beat": 0}
    notes.replace(f"leases/{STAGE}/{generation:06d}", json.dumps(text | record).encode())


@pytest.fixture(params=["lock", "beat"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_LEASES", request.param)
    record = {"layout": 1, "leases": request.param, "ttl": LIMIT}
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text(json.dumps(record))
    return StageStore(tmp_path / "store")


# ---- both kinds --------------------------------------------------------------------------


def test_second_holder_waits_and_then_says_so(store):
    other = StageStore(store.root)
    with store.lease(STAGE):
        assert other.is_running(STAGE)
        with (
            pytest.raises(LeaseHeld, match="works on stage aaaaaaaaaaaa"),
            other.lease(STAGE, wait=0.1),
        ):
            pass
    assert not other.is_running(STAGE)
    with other.lease(STAGE, wait=0):
        pass


def test_a_waiter_gets_the_lease_when_it_is_given_back(store):
    got = threading.Event()

    def wait() -> None:
        with StageStore(store.root).lease(STAGE, wait=30):
            got.set()

    waiter = threading.Thread(target=wait)
    with store.lease(STAGE):
        waiter.start()
        assert not got.wait(0.3)
    waiter.join()
    assert got.is_set()


def test_of_many_who_want_a_lease_one_has_it(store):
    holding: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            with StageStore(store.root).lease(STAGE, wait=60):
                holding.append(number)
                most.append(len(holding))
                time.sleep(0.005)
                holding.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


HOLD = """
import sys
from pathlib import Path
from orchestrator.store import StageStore
with StageStore(Path(sys.argv[1])).lease("a" * 64) as folder:
    (folder / "half").write_text("half")
    print("held", flush=True)
    sys.stdin.readline()
"""


def child(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_lease_ends_at_once_with_a_holder_of_this_machine(store):
    with child(HOLD, str(store.root)) as process:
        assert process.stdout.readline() == "held\n"
        assert store.is_running(STAGE)
        process.kill()
        process.wait()
        assert not store.is_running(STAGE)
        with store.lease(STAGE, wait=0) as folder:  # without waiting for the limit
            assert not (folder / "half").exists()


def test_waiting_ends_with_control_c(store):
    code = """
import signal, sys
from pathlib import Path
from orchestrator.store import StageStore
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell said `&`
print("waits", flush=True)
try:
    with StageStore(Path(sys.argv[1])).lease("a" * 64):
        pass
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    with store.lease(STAGE), child(code, str(store.root)) as process:
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"


# ---- the kind belongs to the store -------------------------------------------------------


def test_a_store_keeps_its_kind_of_leases(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_LEASES", "beat")
    StageStore(tmp_path / "store").ready()
    monkeypatch.delenv("ASYMBENCH_LEASES")
    with open_store(tmp_path).lease(STAGE):
        assert list((tmp_path / "store" / "leases" / STAGE).iterdir())
    monkeypatch.setenv("ASYMBENCH_LEASES", "lock")
    with pytest.raises(InputError, match=r"ASYMBENCH_LEASES: .*'beat'.*given: 'lock'"):
        open_store(tmp_path)


def test_leases_are_locks_unless_asked_otherwise(tmp_path):
    StageStore(tmp_path).ready()
    record = json.loads((tmp_path / "store.json").read_text())
    assert record == {"layout": 1, "leases": "lock", "ttl": 60.0}


def test_an_unknown_kind_of_leases_is_named_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_LEASES", "beats")
    with pytest.raises(InputError, match="unknown kind of leases 'beats'; did you mean 'beat'"):
        open_store(tmp_path)


# ---- heartbeats --------------------------------------------------------------------------


def test_a_holder_elsewhere_is_taken_over_when_it_was_seen_silent_for_the_limit(tmp_path):
    clock, notes = Clock(), FolderNotes(tmp_path)
    elsewhere(notes)
    leases = BeatLeases(notes, ttl=60, clock=clock)
    stop = threading.Event()
    got: list[object] = []

    def wait() -> None:
        got.append(leases.acquire(STAGE, -1))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    clock.now = 59.0
    time.sleep(1.2)
    assert not got
    elsewhere(notes, beat=1)  # it lives
    time.sleep(1.2)
    clock.now = 118.0  # 59 s after that was seen
    time.sleep(1.2)
    assert not got
    clock.now = 120.0
    waiter.join(10)
    assert got[0].generation == 2
    got[0].release()
    stop.set()


def test_clocks_and_file_times_of_other_machines_do_not_matter(tmp_path):
    notes = FolderNotes(tmp_path)
    elsewhere(notes)
    path = tmp_path / "leases" / STAGE / "000001"
    for moment in (0, 2**33):  # 1970, and some centuries from now
        os.utime(path, (moment, moment))
        clock = Clock()
        leases = BeatLeases(notes, ttl=60, clock=clock)
        assert leases.is_held(STAGE)
        clock.now = 59.0
        assert leases.is_held(STAGE)
        clock.now = 60.0
        assert not leases.is_held(STAGE)  # by looking again, and by nothing else


def test_one_who_does_not_want_to_wait_still_takes_over_from_a_dead_holder(tmp_path):
    notes = FolderNotes(tmp_path)
    elsewhere(notes)
    lease = BeatLeases(notes, ttl=1.0).acquire(STAGE, 0)
    assert lease.generation == 2
    lease.release()


def test_one_who_does_not_want_to_wait_is_told_of_a_holder_that_shows_life(tmp_path):
    notes, stop = FolderNotes(tmp_path), threading.Event()

    def live() -> None:
        beat = 0
        while not stop.wait(0.2):
            beat += 1
            elsewhere(notes, beat=beat)

    elsewhere(notes)
    holder = threading.Thread(target=live)
    holder.start()
    try:
        with pytest.raises(LeaseHeld, match="process 1 on other works on stage"):
            BeatLeases(notes, ttl=60).acquire(STAGE, 0)
    finally:
        stop.set()
        holder.join()


def test_a_released_lease_is_free_and_its_number_is_not_used_again(tmp_path):
    leases = BeatLeases(FolderNotes(tmp_path), ttl=60)
    for expected in (1, 2, 3):
        lease = leases.acquire(STAGE, 0)
        assert lease.generation == expected
        lease.check()
        lease.release()
        assert not leases.is_held(STAGE)


def test_a_holder_that_finds_a_later_generation_has_lost(tmp_path):
    notes = FolderNotes(tmp_path)
    lease = BeatLeases(notes, ttl=60).acquire(STAGE, 0)
    assert lease.lost() is None
    elsewhere(notes, generation=2, pid=77)
    with pytest.raises(LeaseLost, match="taken over by process 77 on other"):
        lease.check()
    before = (tmp_path / "leases" / STAGE / "000001").read_bytes()
    lease.release()  # leaves no word: it is no longer its to give
    assert (tmp_path / "leases" / STAGE / "000001").read_bytes() == before


def test_a_holder_that_could_not_write_for_the_limit_has_lost(tmp_path):
    clock = Clock()
    lease = BeatLeases(FolderNotes(tmp_path), ttl=60, clock=clock).acquire(STAGE, 0)
    clock.now = 59.0
    lease.check()
    clock.now = 60.0
    with pytest.raises(LeaseLost, match="without a sign of life for 60 s"):
        lease.check()
    lease.release()


def test_a_holder_whose_file_is_another_s_has_lost(tmp_path):
    notes = FolderNotes(tmp_path)
    lease = BeatLeases(notes, ttl=60).acquire(STAGE, 0)
    elsewhere(notes, generation=1)  # storage that let two create one name
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()


def test_signs_of_life_are_written_while_the_holder_works(tmp_path):
    notes = FolderNotes(tmp_path)
    lease = BeatLeases(notes, ttl=1.2).acquire(STAGE, 0)
    first = notes.read(f"leases/{STAGE}/000001")
    end = time.monotonic() + 20
    while notes.read(f"leases/{STAGE}/000001") == first and time.monotonic() < end:
        time.sleep(0.05)
    assert json.loads(notes.read(f"leases/{STAGE}/000001"))["beat"] >= 1
    lease.check()
    lease.release()


def test_a_process_id_that_was_given_again_is_another_process(tmp_path):
    from orchestrator.processes import this_process

    notes = FolderNotes(tmp_path)
    me = this_process()
    elsewhere(notes, **me)
    assert BeatLeases(notes, ttl=60).is_held(STAGE)
    elsewhere(notes, **{**me, "started": me["started"] - 1000})
    assert not BeatLeases(notes, ttl=60).is_held(STAGE)
    elsewhere(notes, **{**me, "machine": "another boot", "started": 1.0})
    assert BeatLeases(notes, ttl=60).is_held(STAGE)


def test_a_record_that_does_not_read_is_waited_for_and_not_taken_at_once(tmp_path):
    clock, notes = Clock(), FolderNotes(tmp_path)
    notes.replace(f"leases/{STAGE}/000001", b"\xff{")
    leases = BeatLeases(notes, ttl=60, clock=clock)
    assert leases.is_held(STAGE)
    clock.now = 60.0
    lease = leases.acquire(STAGE, 0)
    assert lease.generation == 2
    lease.release()


def test_locks_say_nothing_of_generations(tmp_path):
    lease = LockLeases(tmp_path).acquire(STAGE, 0)
    lease.check()
    assert (lease.generation, lease.lost()) == (0, None)
    lease.release()


# ---- a holder that was suspended ---------------------------------------------------------

SLEEPER = """
import json, sys, time
from pathlib import Path
from orchestrator.leases import LeaseLost
from orchestrator.store import StageStore, digest
store, identity = StageStore(Path(sys.argv[1])), {"stage": "slow"}
try:
    with store.lease(digest(identity)) as folder:
        half = (folder / "weights").open("wb")
        half.write(b"old "); half.flush()
        print("held", flush=True)
        sys.stdin.readline()
        half.write(b"bytes of the one that slept"); half.flush()
        if sys.argv[2] == "write":
            (folder / "codes").write_bytes(b"slept")
        store.commit(digest(identity), "query", identity, {"by": "sleeper"}, {})
        print("committed", flush=True)
except LeaseLost as lost:
    print("lost:", lost, flush=True)
"""


@pytest.mark.parametrize("then", ["write", "commit"])
@pytest.mark.parametrize("finished", [True, False], ids=["after the other", "beside the other"])
def test_a_holder_that_was_suspended_can_neither_write_nor_commit(tmp_path, then, finished):
    tmp_path.joinpath("store.json").write_text('{"layout": 1, "leases": "beat", "ttl": 1.0}')
    store, identity = StageStore(tmp_path), {"stage": "slow"}
    stage = digest(identity)
    with child(SLEEPER, str(tmp_path), then) as process:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        with store.lease(stage, wait=60) as folder:
            (folder / "weights").write_bytes(b"right")
            if finished:
                store.commit(stage, "query", identity, {"by": "successor"}, {})
            process.send_signal(signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            said = process.stdout.readline()
            if not finished:
                store.commit(stage, "query", identity, {"by": "successor"}, {})
    assert said.startswith("lost: ")
    fresh = StageStore(tmp_path)
    assert fresh.manifest(stage).result == {"by": "successor"}
    assert set(fresh.manifest(stage).files) == {"weights"}
    assert fresh.read(stage, "weights").read_bytes() == b"right"
    assert not list((tmp_path / "work").iterdir())


def test_training_ends_at_the_first_checkpoint_after_the_lease_was_lost(tmp_path):
    tmp_path.joinpath("store.json").write_text('{"layout": 1, "leases": "beat", "ttl": 60.0}')
    store = StageStore(tmp_path)
    with store.lease(STAGE):
        checkpoints = store.checkpoints(STAGE)
        checkpoints.save(1, {}, {})
        elsewhere(FolderNotes(tmp_path), generation=2)
        with pytest.raises(LeaseLost, match="taken over"):
            checkpoints.save(2, {}, {})


def test_what_comes_of_a_lost_lease_is_told_as_that(tmp_path):
    tmp_path.joinpath("store.json").write_text('{"layout": 1, "leases": "beat", "ttl": 60.0}')
    store = StageStore(tmp_path)
    with pytest.raises(LeaseLost, match="taken over"), store.lease(STAGE) as folder:
        elsewhere(FolderNotes(tmp_path), generation=2)
        folder.rename(tmp_path / "work" / f"{STAGE}.2")
        (folder / "codes").write_bytes(b"x")


def test_a_failure_of_its_own_is_not_called_a_lost_lease(store):
    with pytest.raises(ZeroDivisionError), store.lease(STAGE):
        raise ZeroDivisionError
