"""Measures the fraction of a traced run in which a device was idle.

    python main.py --config=configs/k400_vitb_pretrain.py \\
        --config.data.train=digits:train --config.profile.first=4 --workdir=RUN ...
    python benchmarks/host_gap.py RUN

Reads the newest trace in RUN/profile. From the start of the first program to the end of
the last one, it counts the time in which no program runs. Programs are found in the
line XLA Modules of each TPU, in the streams of each GPU, or in the threads of the CPU
that execute programs.
"""

import argparse
import pathlib
import sys

import jax

CPU_PROGRAM = "ThunkExecutor::Execute (wait for completion)"


def busy_intervals(trace):
    """Returns the (start, end) in ns of the programs of each device, by its name."""
    intervals = {}
    for plane in trace.planes:
        for line in plane.lines:
            if plane.name.startswith("/device:TPU") and line.name == "XLA Modules":
                events = list(line.events)
            elif plane.name.startswith("/device:GPU") and "Stream" in line.name:
                events = list(line.events)
            elif plane.name == "/host:CPU":
                events = [event for event in line.events if event.name == CPU_PROGRAM]
            else:
                continue
            spans = [(e.start_ns, e.start_ns + e.duration_ns) for e in events]
            intervals.setdefault(plane.name, []).extend(spans)
    return {name: sorted(spans) for name, spans in intervals.items() if spans}


def gap(spans):
    """Returns the fraction of the time that no span covers."""
    covered, end = 0, spans[0][0]
    for start, stop in spans:
        covered += max(stop - max(start, end), 0)
        end = max(end, stop)
    return 1 - covered / (end - spans[0][0])


def main():
    """Prints a line for each device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="a work directory")
    folder = parser.parse_args().run / "profile"
    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        sys.exit(f"{folder}: no trace found; train with --config.profile.first=4")
    trace = jax.profiler.ProfileData.from_file(str(traces[-1]))
    for name, spans in busy_intervals(trace).items():
        length = (max(stop for _, stop in spans) - spans[0][0]) / 1e9
        programs = len(spans)
        print(f"{name}: {gap(spans):.2%} of {length:.2f} s idle ({programs} programs)")


if __name__ == "__main__":
    main()
