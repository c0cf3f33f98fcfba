"""Hostile input for minutes: every parser that strangers reach, with no exception, no growth and nothing over ten milliseconds.

    python -m tests.bench.fuzz_dns                                  all three targets, 600 s together
    python -m tests.bench.fuzz_dns --target query --seconds 60      one of: query, corefile, reply
    python -m tests.bench.fuzz_dns --engine atheris --seconds 60    coverage-guided, where `pip install atheris` works

Targets:
  query     a packet of a client → `chain.respond` on every server block of a Corefile with every directive, as UDP and TCP, by clients with
            and without a search list; what comes out is a message that repeats the question and fits the transport
  corefile  a Corefile's text → blocks, or a refusal with its place; what is read is also compiled
  reply     an upstream's packet → `upstream.read`, and the client's message out of what is believed

An input is made from one that showed something new: bits, bytes, numbers and pieces of it changed, two of them joined. New is an outcome of
another shape (rcode, counts, length), which stands for coverage without any. Time is the processor's for this thread alone, so that busy
neighbours do not count; what takes long is tried again, and the least of three counts. The first failure of each kind is told with its
input in hex. Exit code 1: something failed. The same --seed does the same.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.dns.targets import TARGETS, Target

LIMIT_S = 0.010
GROWTH_MIB = 8.0  # after the first fifth of the time: allocators settle
KEPT = 4000  # inputs that showed something new
SHAPES = 20_000  # kinds of outcome that are told apart: messages repeat words of the input
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
_NUMBERS = (0, 1, 2, 63, 64, 127, 128, 191, 192, 193, 254, 255)
_REPORT_S = 20.0


@dataclass(slots=True)
class Found:
    """What a loop has seen of one target."""

    runs: int = 0
    slowest_s: float = 0.0
    shapes: Counter[Hashable] = field(default_factory=Counter)
    failures: dict[str, bytes] = field(default_factory=dict)
    rss_early: float = 0.0
    rss: float = 0.0


def rss_mib() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MIB


def mutated(choice: random.Random, corpus: list[bytes], dictionary: tuple[bytes, ...]) -> bytes:
    """A neighbour of something in the corpus."""
    data = bytearray(choice.choice(corpus))
    for _ in range(choice.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        _step(choice, data, corpus, dictionary)
    return bytes(data[:65535])


def _step(choice: random.Random, data: bytearray, corpus: list[bytes], dictionary: tuple[bytes, ...]) -> None:
    at = choice.randrange(len(data) + 1)
    size = min(choice.choice((1, 1, 2, 4, 8, 32, 200)), len(data) - at)
    match choice.randrange(9):
        case 0 if at < len(data):
            data[at] ^= 1 << choice.randrange(8)
        case 1 if at < len(data):
            data[at] = choice.choice(_NUMBERS)
        case 2:
            data[at:at] = bytes(choice.choices(range(256), k=choice.choice((1, 1, 2, 5))))
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size] * choice.choice((1, 2, 3, 30))
        case 5:
            other = choice.choice(corpus)
            begin = choice.randrange(len(other) + 1)
            data[at : at + size] = other[begin : begin + choice.choice((4, 16, 64, 512))]
        case 6:
            data[at : at + choice.choice((0, size))] = choice.choice(dictionary)
        case 7 if len(data) > 12:
            where = choice.randrange(2, 12)  # flags and counts
            data[where] = choice.choice(_NUMBERS)
        case _:
            del data[at:]


def fuzz(target: Target, seconds: float, seed: int, say: Callable[[str], None]) -> Found:
    """The loop over one target."""
    choice, found = random.Random(seed), Found()
    corpus = list(target.corpus)
    began = told = time.monotonic()
    for data in corpus:
        _one(target, data, found)
    gc.collect()
    while (now := time.monotonic()) < began + seconds:
        for _ in range(200):
            data = mutated(choice, corpus, target.dictionary)
            if _one(target, data, found):
                if len(corpus) >= KEPT:
                    corpus[choice.randrange(len(target.corpus), KEPT)] = data
                else:
                    corpus.append(data)
        if not found.rss_early and now > began + seconds / 5:
            gc.collect()
            found.rss_early = rss_mib()
        if now - told > _REPORT_S:
            told = now
            say(_line(target, found, now - began))
    gc.collect()
    found.rss = rss_mib()
    if found.rss - found.rss_early > GROWTH_MIB:
        found.failures[f"memory grew from {found.rss_early:.0f} to {found.rss:.0f} MiB"] = b""
    return found


def _one(target: Target, data: bytes, found: Found) -> bool:
    """Runs one input; whether its outcome had a new shape."""
    begun = time.thread_time()
    try:
        shape = target.run(data)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        found.failures.setdefault(
            f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {error}"[:200], data
        )
        shape = ("failed",)
    took = time.thread_time() - begun
    if took > LIMIT_S:
        took = min(took, *(_again(target, data) for _ in range(2)))
        if took > LIMIT_S:
            found.failures.setdefault(f"{took * 1e3:.0f} ms for {len(data)} octets, outcome {shape}", data)
    found.runs += 1
    found.slowest_s = max(found.slowest_s, took)
    if shape not in found.shapes and len(found.shapes) >= SHAPES:
        return False
    found.shapes[shape] += 1
    return found.shapes[shape] == 1


def _again(target: Target, data: bytes) -> float:
    begun = time.thread_time()
    try:
        target.run(data)
    except Exception:
        return 0.0
    return time.thread_time() - begun


def _line(target: Target, found: Found, seconds: float) -> str:
    return (
        f"{target.name}: {found.runs:,} inputs in {seconds:.0f} s, {len(found.shapes):,} kinds of outcome, slowest "
        f"{found.slowest_s * 1e3:.2f} ms, {rss_mib():.0f} MiB, {len(found.failures)} failures"
    )


def by_atheris(target: Target, seconds: float, seed: int) -> None:
    """Coverage-guided, until the time is up or something fails; ends the process. Its own corpus is kept nowhere."""
    import atheris  # an optional engine

    atheris.instrument_all()

    def one(data: bytes) -> None:
        begun = time.thread_time()
        target.run(data)
        if time.thread_time() - begun > LIMIT_S and (took := _again(target, data)) > LIMIT_S:
            raise TimeoutError(f"{took * 1e3:.0f} ms")

    words = [sys.argv[0], f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup(words, one)
    atheris.Fuzz()


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description="hostile input for the DNS parsers")
    parser.add_argument("--target", choices=[*TARGETS], action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all targets together (default 600)")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--engine", choices=["own", "atheris"], default="own")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 31)
    chosen = [TARGETS[name]() for name in given.target or TARGETS]
    if given.engine == "atheris":
        by_atheris(chosen[0], given.seconds, seed)
    print(f"seed {seed}", flush=True)
    failed = False
    for target in chosen:
        begun = time.monotonic()
        found = fuzz(target, given.seconds / len(chosen), seed, lambda text: print(text, flush=True))
        print(_line(target, found, time.monotonic() - begun), flush=True)
        for what, data in found.failures.items():
            failed = True
            print(f"  FAILED {what}\n    {data[:2000].hex()}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
