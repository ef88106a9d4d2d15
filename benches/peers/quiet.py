"""Timing on a machine that others use too: which repetitions were disturbed, and waiting for calm.

A repetition counts as quiet if the threads of this process hardly ever waited for a core while it
ran: the kernel keeps that time, per thread, as the second number of /proc/<pid>/task/*/schedstat.
"""

import glob
import os
import statistics
import time

# Share of the time of the computing threads that may be spent waiting in a quiet repetition.
WAITED = 0.02
WARM_UP = 3


def waited_seconds():
    """Time that threads of this process were ready to run and were not running."""
    total = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        try:
            with open(path) as file:
                total += int(file.read().split()[1])
        except OSError:
            pass  # the thread ended, or this is no Linux with scheduler statistics
    return total * 1e-9


def cpu_ticks():
    """(all, idle, stolen by other guests of the host) in ticks since the start, over all cores."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, idle, iowait, irq, softirq, steal = map(
                int, file.readline().split()[1:9]
            )
    except OSError:
        return (0, 0, 0)
    return (user + nice + system + idle + iowait + irq + softirq + steal, idle + iowait, steal)


def idle_share(seconds):
    """Share of all cores that stood idle while this process slept for so long."""
    before = cpu_ticks()
    time.sleep(seconds)
    after = cpu_ticks()
    return (after[1] - before[1]) / max(1, after[0] - before[0])


def await_calm(deadline):
    """Returns as soon as the machine is nearly idle, at the latest at the deadline."""
    while time.monotonic() < deadline and idle_share(0.1) < 0.9:
        pass


def measure(call, reps, patience, threads):
    """Calls until `reps` quiet repetitions are there, waiting at most `patience` seconds in all.

    Short calls are repeated up to 20 times as often, within a third of a second.
    """
    for _ in range(WARM_UP):
        call()
    deadline = time.monotonic() + patience
    everything, quiet = [], []
    while True:
        waited = waited_seconds()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        waited = waited_seconds() - waited
        everything.append(seconds)
        if waited <= WAITED * seconds * threads:
            quiet.append(seconds)
        elif time.monotonic() < deadline:
            await_calm(deadline)
            call()  # the caches belong to somebody else now
        enough = quiet if time.monotonic() < deadline else everything
        short = sum(enough) < 0.3 and len(enough) < 20 * reps
        if len(enough) >= reps and not short:
            break
    chosen = quiet if len(quiet) >= 3 else everything
    return {
        "ms_min": round(min(chosen) * 1e3, 4),
        "ms_median": round(statistics.median(chosen) * 1e3, 4),
        "reps": len(everything),
        "quiet": len(quiet),
    }


if __name__ == "__main__":
    print(f"{idle_share(1):.0%} of {os.cpu_count()} cores idle")
