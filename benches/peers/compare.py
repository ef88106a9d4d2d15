"""Noiseforge beside PyTorch in one run, alternating; one table. scripts/compare-cpu starts it."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

import quiet
import torch_peers

# Rounds whose best times differ by more than this say little about a ratio.
SPREAD = 1.10
# Forms of PyTorch this much slower than its best one in the first round are not run again.
HOPELESS = 1.3


def say(text):
    print(text, file=sys.stderr, flush=True)


def lines_of(command, environment):
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")
    return done.stdout


class Rounds:
    """Lines of all rounds: (work, peer, layout, form) -> one line a round."""

    def __init__(self, log):
        self.lines = {}
        self.log = log

    def add(self, text, names):
        for line in map(json.loads, text.splitlines()):
            if line["work"] not in names:
                continue
            key = (line["work"], line["peer"], line["layout"], line["form"])
            self.lines.setdefault(key, []).append(line)
            if self.log:
                self.log.write(json.dumps(line) + "\n")
                self.log.flush()

    def best(self, work, is_peer):
        """(key, lines) of the fastest way in which a peer does this work, or None."""
        ways = [(k, v) for k, v in self.lines.items() if k[0] == work and is_peer(k[1])]
        return min(ways, key=lambda way: fastest(way[1]), default=None)


def fastest(lines):
    return min(line["ms_min"] for line in lines)


def median(lines):
    return statistics.median(line["ms_median"] for line in lines)


def is_torch(peer):
    return peer.startswith("torch")


def noisy(lines):
    """Whether the rounds disagree, or most repetitions were disturbed by other programs."""
    times = [line["ms_min"] for line in lines]
    if max(times) > SPREAD * min(times):
        return True
    counted = [line for line in lines if "quiet" in line]
    return sum(li["quiet"] for li in counted) * 2 < sum(li["reps"] for li in counted)


def measure(args, rounds):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "RAYON_NUM_THREADS": str(args.threads),
    }
    jobs = torch_peers.jobs(
        args.only, torch_peers.LAYOUTS, list(torch_peers.FORMS), torch_peers.MALLOC
    )
    if not jobs:
        sys.exit("no work has such a name")
    ours = set(lines_of([args.bench, "--list"], environment).splitlines()) if args.bench else set()
    groups = {}
    for job, names in jobs.items():
        groups.setdefault(job[0], []).append((job, names))

    for round_ in range(args.rounds):
        for group, members in groups.items():
            say(f"round {round_ + 1} of {args.rounds}: {group}")
            names = {name for _, names in members for name in names}

            def torch():
                for job, works in members:
                    if round_ == 0 or promising(rounds, job, works):
                        text = torch_peers.run(job, works, args.reps, args.patience, args.threads)
                        rounds.add(text, works)

            def noiseforge():
                if here := sorted(names & ours):
                    command = [args.bench, "--reps", str(args.reps)]
                    command += ["--patience", str(args.patience)]
                    command += [word for name in here for word in ("--only", name)]
                    rounds.add(lines_of(command, environment), here)

            def rust(program):
                for name in sorted(names):
                    if name.startswith("w2"):
                        quiet.await_calm(time.monotonic() + args.patience)
                        rounds.add(lines_of([program, "--only", name], environment), [name])

            turns = [torch, noiseforge]
            turns += [lambda p=p: rust(p) for p in (args.candle, args.burn) if p]
            # Whoever runs first finds another machine than whoever runs last.
            for turn in turns if round_ % 2 == 0 else reversed(turns):
                turn()


def promising(rounds, job, works):
    """Whether this way of running PyTorch came near its best in any of the works."""
    _, layout, form, malloc = job
    peer = "torch" if malloc == "default" else f"torch+{malloc}"
    for work in works:
        lines = rounds.lines[(work, peer, layout, form)]
        _, best = rounds.best(work, is_torch)
        if fastest(lines) <= HOPELESS * fastest(best):
            return True
    return False


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cell(lines):
    return f"{number(fastest(lines))} / {number(median(lines))}"


def table(rounds):
    """Rows of text, and how many of them are noisy."""
    works = list(dict.fromkeys(key[0] for key in rounds.lines))
    others = sorted({k[1] for k in rounds.lines if not is_torch(k[1]) and k[1] != "noiseforge"})
    head = ["work", "PyTorch, best form", "ms", "MB", "noiseforge ms", "MB", "ratio", "rounds"]
    for peer in others:
        head += [f"{peer} ms", "MB", "ratio"]
    rows, disturbed = [head + [""]], 0
    for work in works:
        (_, peer, layout, form), torch = rounds.best(work, is_torch)
        row = [work, f"{peer} {layout} {form}", cell(torch), memory(torch)]
        mark = noisy(torch)
        mine = rounds.best(work, lambda p: p == "noiseforge")
        if mine:
            # One ratio a round, of times measured within minutes of one another.
            ratios = [m["ms_min"] / t["ms_min"] for m, t in zip(mine[1], torch)]
            mark |= noisy(mine[1]) or max(ratios) > SPREAD * min(ratios)
            row += [cell(mine[1]), memory(mine[1])]
            row += [f"{fastest(mine[1]) / fastest(torch):.2f}"]
            row += [f"{min(ratios):.2f}..{max(ratios):.2f}"]
        else:
            row += ["", "", "", ""]
        for peer in others:
            other = rounds.best(work, lambda p: p == peer)
            if other:
                row += [cell(other[1]), memory(other[1])]
                row += [f"{fastest(other[1]) / fastest(torch):.2f}"]
            else:
                row += ["", "", ""]
        disturbed += mark
        rows.append(row + ["~" if mark else ""])
    return rows, disturbed


def memory(lines):
    peaks = [line["peak_mb"] for line in lines if line.get("peak_mb")]
    return f"{max(peaks):.0f}" if peaks else ""


def print_table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i, row in enumerate(rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(li.split(":", 1)[1].strip() for li in file if li.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="works whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reps", type=int, default=10, help="repetitions a round")
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds a work may wait for a quiet machine"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bench", help="noiseforge's bench program peer_shapes")
    parser.add_argument("--candle", help="the program peer-candle")
    parser.add_argument("--burn", help="the program peer-burn")
    parser.add_argument("--log", help="append every JSON line to this file")
    args = parser.parse_args()

    before, start, load = quiet.cpu_ticks(), time.monotonic(), os.getloadavg()[0]
    rounds = Rounds(open(args.log, "a") if args.log else None)
    measure(args, rounds)
    rows, disturbed = table(rounds)
    print_table(rows)

    after = quiet.cpu_ticks()
    total = max(1, after[0] - before[0])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    own_ticks = (own.ru_utime + own.ru_stime) * os.sysconf("SC_CLK_TCK")
    stolen = (after[2] - before[2]) / total
    foreign = max(0.0, (total - (after[1] - before[1]) - own_ticks) / total - stolen)
    print()
    print(f"{cpu_name()}, {os.cpu_count()} cores, {args.threads} threads, f32, batch 32; "
          f"torch {version('torch')}; {(time.monotonic() - start) / 60:.0f} minutes.")  # fmt: skip
    print("ms: best / median. ratio: best of noiseforge or peer over PyTorch's best form; "
          "rounds: that ratio, lowest and highest of the rounds.")  # fmt: skip
    print(f"Meanwhile other programs used {foreign:.0%} of the cores, other guests of the host "
          f"{stolen:.0%}; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after.")  # fmt: skip
    if disturbed:
        print(f"NOISY: {disturbed} of {len(rows) - 1} rows (~) differ by more than "
              f"{SPREAD - 1:.0%} between rounds, or other programs ran during most of their "
              "repetitions. Trust their ratios only as far; repeat on a quiet machine.")  # fmt: skip
    else:
        print(f"Quiet: every row agrees within {SPREAD - 1:.0%} between rounds.")


if __name__ == "__main__":
    main()
