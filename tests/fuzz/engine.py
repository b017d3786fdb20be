# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of all fuzzers: mutate what is known, look what comes of it, keep what behaves in a new way.

An input whose outcome (an error without its numbers and quoted parts, say) was not seen before joins the corpus, so
that it grows from real inputs towards what is rare. A finding is any exception that the target lets through, an input
that takes too long, or memory that grows; the input is written to a file that `--replay` takes.

A target has `corpus`, `mutate(rng, corpus)`, `check(input)`, which returns the outcome, `finish` for last checks, and
`close`.
"""

import base64
import faulthandler
import gc
import os
import random
import re
import resource
import sys
import tempfile
import time

SLOW = 20.0  # seconds of CPU time for one input: what the disk takes on a busy machine says nothing
HANG = 120.0  # seconds, after which the process is ended with a traceback
GROWTH = 96 << 20  # bytes of memory that may stay
SPIKE = 1 << 30  # bytes of address space for one input
_LOOK = 200  # inputs between two looks at the memory
_MOST_KEPT = 2000


class Finding(AssertionError):
    """What a fuzzer has found; `data` is the input."""


def mutated(rng, corpus, words):
    """Bytes out of `corpus`, changed in some places; `words` are what the format knows."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2)) if data else (0, 0)
        end = min(end, at + rng.choice((1, 4, 16, 200)))
        change = rng.randrange(8)
        if change == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at:end] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif change == 2:
            del data[at:end]
        elif change == 3:
            data[at:at] = data[at:end] * rng.choice((1, 2, 50))
        elif change == 4:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at:end] = other[start : start + rng.choice((4, 32, 256))]
        elif change == 5:
            data[at:end] = rng.choice(words)
        elif change == 6:
            data[at:at] = rng.choice(words)
        else:
            _swap_number(rng, data)
    return bytes(data)


_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"4294967295",
    b"9223372036854775808",
    b"1e400",
    b"-0",
    b"9" * 5000,
    b"0.1",
    b"nan",
    b"inf",
    b"true",
    b"1" * 30,
)


def _swap_number(rng, data):
    found = list(re.finditer(rb"\d+", data))
    if found:
        number = rng.choice(found)
        data[number.start() : number.end()] = rng.choice(_NUMBERS)


def signature(text):
    """An outcome without what differs from input to input."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]*\d+[0-9a-f]*|\(.*\)", "_", text)[:120]


def fuzz(target, seconds, seed, out=sys.stderr):
    """Run `target` for a time; returns how many inputs and outcomes there were. Raises `Finding`."""
    try:
        done, seen = _run(target, seconds, seed, out)
        target.finish()
        return done, seen
    finally:
        target.close()


def _run(target, seconds, seed, out):
    rng = random.Random(seed)
    corpus = list(target.corpus())
    for data in corpus:
        check(target, data)
    seen = set()
    done, began, reported = 0, time.monotonic(), time.monotonic()
    used = memory()
    with _Bounded():
        while (now := time.monotonic()) - began < seconds:
            data = target.mutate(rng, corpus)
            outcome = signature(check(target, data, seed))
            if outcome not in seen and len(corpus) < _MOST_KEPT:
                seen.add(outcome)
                corpus.append(data)
            done += 1
            if done % _LOOK == 0:
                used = _look_at_memory(used, data)
            if out is not None and now - reported > 30:
                reported = now
                print(
                    f"{target.name}: {done} inputs, {len(seen)} outcomes, {memory() >> 20} MiB", file=out, flush=True
                )
    return done, seen


def check(target, data, seed=None):
    """One input; returns its outcome."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    began = time.process_time()
    try:
        outcome = target.check(data)
        assert time.process_time() - began < SLOW, f"it took {time.process_time() - began:.0f} s"
        return outcome
    except Exception as error:
        raise Finding(
            f"{target.name}, seed {seed}: {type(error).__name__}: {error}\n{_kept(target, data)}"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def _kept(target, data):
    fd, path = tempfile.mkstemp(prefix=f"vemgr-fuzz-{target.name}-")
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    return (
        f"python3 -m tests.fuzz {target.name} --replay {path}\n"
        f"its first bytes, base64: {base64.b64encode(data[:3000]).decode()}"
    )


def memory(pid="self"):
    """Bytes that a process has in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _look_at_memory(used, data):
    if memory() - used > GROWTH:
        gc.collect()
        if memory() - used > GROWTH:
            raise Finding(
                f"memory has grown from {used >> 20} to {memory() >> 20} MiB; the last input: {data[:200]!r}"
            )
    return used


class _Bounded:
    """A limit on address space, so that an input that asks for all memory is told from one that is only slow."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SPIKE, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_AS, self._before)
