"""Threads, forks and signals around calls of compiled code.

TVM keeps a pool of worker threads for each thread that calls kernels. In a process made by `os.fork` only the thread
that forked goes on: its workers are gone, and a kernel that waits for them would wait for ever. So that thread computes
alone in the child; threads that are started there get pools of their own. A fork waits for calls in progress, so that
no lock of theirs is held in the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

# TVM would pin its workers to cores but not the caller, which then shares one core with a worker while another idles.
os.environ.setdefault("TVM_BIND_THREADS", "0")

from types import FrameType

import torch
import tvm_ffi

_ALL_CORES_ALIKE = 1
_WORKERS = os.cpu_count() or 1
# Named, so that TVM asks neither TVM_NUM_THREADS nor OMP_NUM_THREADS, which may hold anything.
_CORES = [str(core) for core in range(_WORKERS)]


class _Pool(threading.local):
    """How many threads are set in this Python thread, and whether its workers are gone."""

    threads: int | None = None
    orphaned = False


_pool = _Pool()
_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_forking = threading.RLock()  # no lock is added meanwhile
_held: list[threading.RLock] = []  # the locks that the thread which forks has taken


def set_threads(threads: int) -> int:
    """Let kernels called from this Python thread use ``threads`` threads; returns how many they will use."""
    usable = 1 if _pool.orphaned else threads
    if _pool.threads != usable:
        tvm_ffi.get_global_func("runtime.config_threadpool")(_ALL_CORES_ALIKE, usable, _CORES)
        _pool.threads = usable
    return usable


def call_lock() -> threading.RLock:
    """A lock to hold during calls; a thread may take it again, as a signal handler that makes a call does."""
    lock = threading.RLock()
    with _forking:
        _locks.add(lock)
    return lock


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold signal handlers written in Python back until the end of the block.

    They run in the main thread, between any two instructions of Python; an exception that one raises inside a function
    that native code called, such as KeyboardInterrupt, damages the memory of TVM's bindings.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    known = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {
        number: handler for number, handler in known.items() if callable(handler)
    }
    try:
        for number in handlers:
            signal.signal(number, lambda *event: arrived.append(event))
        yield
    finally:
        _install(dict(handlers))
        with ExitStack() as calls:  # which makes all, though one may raise
            for number, frame in reversed(arrived):
                calls.callback(handlers[number], number, frame)


def _install(handlers: dict[int, Callable[[int, FrameType | None], object]]) -> None:
    """Set all handlers, though one that is set already may raise meanwhile; empties the dictionary."""
    try:
        while handlers:
            number = next(iter(handlers))
            signal.signal(number, handlers[number])
            del handlers[number]
    finally:
        if handlers:
            _install(handlers)


# Forks ------------------------------------------------------------------------------------------------------------


def _before_fork() -> None:
    _forking.acquire()
    _held.append(_forking)
    for lock in list(_locks):
        lock.acquire()
        _held.append(lock)
    if _pool.threads is not None and not _pool.orphaned:
        _rouse_workers()


def _rouse_workers() -> None:
    """Give each worker of this thread a task that does nothing, after which it looks for more for a while.

    A child that ends by `sys.exit` destroys the pool, which takes for ever if a worker was asleep when it was forked
    (as they all are if TVM_THREAD_POOL_SPIN_COUNT is 0; children of `multiprocessing` end without that).
    """
    set_threads(_WORKERS)
    nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)  # returns 0, a task's sign of success
    ctypes.CDLL(None).TVMBackendParallelLaunch(nothing, None, 0)


def _after_fork() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    if _pool.threads is not None:
        _pool.orphaned, _pool.threads = True, None
        torch.set_num_threads(1)  # in this thread; PyTorch's workers, which check and copy inputs, are gone too
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
