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
# Seconds that reading those files takes at most, if nothing comes between.
READING = 2e-4
WARM_UP = 3


class Waiting:
    """The time for which threads were ready to run and were not running.

    Of this thread if it computes alone, else of all threads that exist now; of those, several may
    wait at the same time.
    """

    def __init__(self, threads):
        paths = ["/proc/thread-self/schedstat"]
        if threads > 1:
            paths = glob.glob("/proc/self/task/*/schedstat")
        # Kept open: looking the threads up takes longer than some of what is measured.
        self.files = [os.open(p, os.O_RDONLY) for p in paths if os.path.exists(p)]

    def seconds(self):
        # A file is empty where a kernel keeps no such statistics.
        fields = [os.pread(file, 64, 0).split() for file in self.files]
        return 1e-9 * sum(int(f[1]) for f in fields if len(f) > 1)

    def close(self):
        for file in self.files:
            os.close(file)


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
    With one thread the time spent waiting for a core delays nobody else, so it is taken off
    instead, and no repetition counts as disturbed.
    """
    for _ in range(WARM_UP):
        call()
    deadline = time.monotonic() + patience
    waiting = Waiting(threads)
    everything, quiet = [], []
    while True:
        before = time.perf_counter()
        waited = waiting.seconds()
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        waited = waiting.seconds() - waited
        after = time.perf_counter()
        seconds = end - start
        if threads == 1:
            if max(start - before, after - end) > READING:
                continue  # it may have waited outside the call, by the same account
            seconds, waited = seconds - waited, 0
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
    waiting.close()
    chosen = quiet if len(quiet) >= 3 else everything
    return {
        "ms_min": round(min(chosen) * 1e3, 4),
        "ms_median": round(statistics.median(chosen) * 1e3, 4),
        "reps": len(everything),
        "quiet": len(quiet),
    }


if __name__ == "__main__":
    print(f"{idle_share(1):.0%} of {os.cpu_count()} cores idle")
