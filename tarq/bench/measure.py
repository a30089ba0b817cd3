"""Shared by all benchmarks: cases, timing, the machine's ceilings, and records."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tarq.kernels import dispatch
from tarq.report import Reporter
from tarq.version import __version__

#: Takes the number of the copy to work on. A returned float is the call's own measurement, in seconds.
Call = Callable[[int], Any]
Record = dict[str, Any]
Shape = tuple[int, int]

#: What a CPU's calls are timed by, by name: wall time, or this process's time on the processor, in which other
#: processes count little. Threads that wait for others count there too, so it is for one thread alone.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}

#: Seconds of a call on a CPU that is short beside what the one before it leaves behind, of the rest before it. A
#: burst of it lasts as long as the longest short call.
SHORT, REST = 0.02, 0.004

#: Calls in a CUDA graph, at least: its own launch is then a small part.
GRAPH_CALLS = 20

#: Most copies of a problem: a chip with a large cache and a small layer would need too many.
MOST_COPIES = 128


def calling(function: Callable[..., Any], *args: Any) -> Call:
    """A call of ``function(*args)``, the same for every copy."""
    return lambda _: function(*args)


@dataclass(frozen=True)
class Case:
    """One problem and its contestants.

    Attributes:
        op: operation, with its variant ("gram", "gram, four sums").
        shape: sizes, as the operation's benchmark orders them.
        ours: what this package does, by name of the variant.
        dtypes: of the operands of each of ours.
        peers: what others do for the same result, by name.
        bytes: memory that has to be read and written at least once.
        flops: multiplications and additions that cannot be avoided, by the kind of unit that does them
            ("float32", "bfloat16", "int8") for each of ``ours``.
        copies: problems walked through in turn; more than one keeps them out of the caches.
        graph: on a GPU, time replays of a CUDA graph (:func:`replayed`); for what does not wait for the device.
        extra: further fields of the case's records, asked for after timing.
    """

    op: str
    shape: tuple[int, ...]
    ours: dict[str, Call]
    dtypes: dict[str, str]
    peers: dict[str, Call]
    bytes: int
    flops: dict[str, tuple[str, float]]
    copies: int = 1
    graph: bool = False
    extra: Callable[[], Record] = field(default=dict)


@dataclass(frozen=True)
class Ceilings:
    """The measured peaks of this machine: bytes read per second, and operations per second by kind."""

    read: float
    flops: dict[str, float]

    def rate(self, kind: str) -> float | None:
        """Operations per second; bfloat16 falls back to float32 if it has no units. None: not measured."""
        return self.flops.get(kind, self.flops.get("float32") if kind == "bfloat16" else None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set torch's number of threads temporarily."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def medians(
    calls: dict[str, Call], copies: int, seconds: float, device: torch.device, clock: str = "wall"
) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that a busy moment affects all of them.

    On a CPU a short call follows a rest and a burst of itself, and the mean of another burst is taken: the threads of
    the one before, which wait for more work on the same cores, have gone to sleep by then, its own are awake, and clock
    and caches are as they are in the midst of work. A copy comes again after all others.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    turn, made, end = 0, 0, time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or turn < 3:
        for name, call in calls.items():
            fastest, burst, warm = min(times[name], default=0.0), 1, 0
            if device.type == "cpu" and fastest < SHORT:
                time.sleep(REST)
                burst = warm = round(SHORT / fastest) if fastest else 1
            timed = [_once(call, (made + i) % copies, device, clock) for i in range(warm + burst)][warm:]
            times[name].append(sum(timed) / burst)
            made += warm + burst
        turn += 1
    return {name: statistics.median(values) for name, values in times.items()}


def _once(call: Call, copy: int, device: torch.device, clock: str = "wall") -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        own = call(copy)
        end.record()
        torch.cuda.synchronize(device)
        return own if isinstance(own, float) else start.elapsed_time(end) / 1e3
    now = CLOCKS[clock]
    began = now()
    own = call(copy)
    return own if isinstance(own, float) else now() - began


def replayed(call: Call, copies: int, device: torch.device, least: int = GRAPH_CALLS) -> Call:
    """The call on every copy in turn, ``least`` times or more, captured as a CUDA graph: returns its seconds for one.

    Launching costs the host more than a small kernel takes: without a graph, ratios would compare Python.

    Raises:
        RuntimeError: the call waits for the device, which a graph cannot hold.
    """
    count = copies * -(-least // copies)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for copy in range(copies):  # compiles and tunes itself now
                call(copy)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(count):
                call(i % copies)
    return lambda _: _once(lambda _: graph.replay(), 0, device) / count


def copies_beyond_cache(size: int, device: torch.device) -> int:
    """How many problems of ``size`` bytes that exceed a GPU's L2: a model's layers do not stay there between tokens."""
    return min(-(-2 * torch.cuda.get_device_properties(device).L2_cache_size // size), MOST_COPIES)


def ceilings(device: torch.device, clock: str = "wall") -> Ceilings:
    """Measure them: the best of a few runs, with torch's current number of threads."""

    def best(call: Call, count: float, runs: int = 5) -> float:
        call(0)
        return count / min(_once(call, 0, device, clock) for _ in range(runs))

    if device.type == "cuda":
        block = torch.randn(1 << 28, device=device)
        other, n, flops = torch.empty_like(block), 8192, {}
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(n, n, device=device, dtype=dtype)
            flops[str(dtype).removeprefix("torch.")] = best(calling(torch.matmul, a, a), 2.0 * n**3)
        # Reading alone, or reading and writing: whichever moves more bytes per second.
        read = best(lambda _: block.sum(), block.nbytes)
        return Ceilings(max(read, best(lambda _: other.copy_(block), 2.0 * block.nbytes)), flops)
    if dispatch.EXTENSION_ERROR is not None:
        block = torch.ones(1 << 26)
        a = torch.randn(1024, 1024)
        return Ceilings(best(lambda _: block.sum(), block.nbytes), {"float32": best(lambda _: a @ a, 2.0 * 1024**3)})
    block = torch.ones(1 << 26)  # 256 MB: more than caches hold
    rates, iterations = {}, 1_000_000
    for kind, name in enumerate(("float32", "bfloat16", "int8")):
        operations: float = torch.ops.tarq.multiply_add(kind, iterations)
        if operations:  # none on a processor without such a unit
            rates[name] = best(calling(_silently, torch.ops.tarq.multiply_add, kind, iterations), operations)
    return Ceilings(best(lambda _: torch.ops.tarq.read_bytes(block), block.nbytes), rates)


def _silently(function: Callable[..., Any], *args: Any) -> None:
    """Call it and drop its result, which would be taken for seconds."""
    function(*args)


def device_name(device: torch.device) -> str:
    """The processor's or GPU's name; for a CPU also the best instruction set our kernels found."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    isa = torch.ops.tarq.cpu_isas()[0] if dispatch.EXTENSION_ERROR is None else "no extension"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model} ({isa})"


def versions(device: torch.device) -> Record:
    """Versions of the libraries that a timing depends on."""
    known: Record = {"tarq": __version__, "torch": torch.__version__}
    if device.type == "cuda":
        import triton

        capability = torch.cuda.get_device_capability(device)
        known |= {"triton": triton.__version__, "cuda": torch.version.cuda, "capability": list(capability)}
    return known


def records_of(
    case: Case,
    known: Ceilings,
    seconds: float,
    device: torch.device,
    reporter: Reporter | None = None,
    clock: str = "wall",
) -> list[Record]:
    """Time a case: one record per pair of our variants and peers. A peer that fails is reported and left out.

    ``ratio`` is our time over the peer's: below 1 ours is faster. ``roofline`` is the share of the bound that the
    machine's ceilings set, 1 being all of it: the greater of bytes over read bandwidth and operations over their
    rate, over our time. It exceeds 1 where operands stay in cache. ``ceiling`` is the bandwidth or the rate meant.
    """
    graph = case.graph and device.type == "cuda"
    calls: dict[str, Call] = {}
    for name, call in (case.ours | case.peers).items():
        try:
            calls[name] = replayed(call, case.copies, device) if graph else call
            calls[name](0)
        except Exception as error:
            if name in case.ours:
                raise
            calls.pop(name, None)
            (reporter or Reporter()).note(f"{name} left out of {case.op} {case.shape}: {error}")
    measured = medians(calls, 1 if graph else case.copies, seconds, device, clock)
    native = dispatch.has_native(case.op.split(",")[0], device.type)
    extra = versions(device) | case.extra()

    def record(ours: str, peer: str) -> Record:
        kind, flops = case.flops[ours]
        bounds, limits = {"memory": case.bytes / known.read}, {"memory": known.read}
        if rate := known.rate(kind):
            bounds["arithmetic"], limits["arithmetic"] = flops / rate, rate
        bound = max(bounds, key=bounds.__getitem__)
        return {
            "op": case.op,
            "shape": list(case.shape),
            "dtype": case.dtypes[ours],
            "variant": ours,
            "threads": torch.get_num_threads(),
            "clock": clock,
            "device": device_name(device),
            "backend": "native" if native else "reference",
            "peer": peer,
            "seconds": measured[ours],
            "peer_seconds": measured[peer],
            "ratio": measured[ours] / measured[peer],
            "roofline": bounds[bound] / measured[ours],
            "bound": bound,
            "ceiling": limits[bound],
            "copies": case.copies,
            **extra,
        }

    return [record(ours, peer) for ours in case.ours for peer in case.peers if peer in measured]
