"""A contender for the tests of benchmarks.worker: multiplies the number of its cycles."""

from __future__ import annotations

import json
import sys

from benchmarks.worker import Pipe

if __name__ == "__main__":
    pipe = Pipe()
    times = json.loads(sys.argv[1])["times"]
    pipe.imported()
    count = 0
    held = []

    def cycle() -> dict[str, int]:
        global count
        count += 1
        held.append(b"x" * (8 << 20))  # so that the peak moves
        print("noise that must not reach the parent")
        return {"value": count * times}

    pipe.serve(cycle)
