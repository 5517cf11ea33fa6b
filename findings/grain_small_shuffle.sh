#!/bin/sh
# The smaller a data set, the longer Grain takes to draw one element of its shuffled
# order: milliseconds for ten elements, a hundredth of that for ten thousand. The index
# is encrypted within a domain of a fixed least size, again and again until it falls
# into the data set, which for ten elements takes thousands of times. `.shuffle()` on a
# list of a few videos, such as a debug run's or a test's, can so take longer than
# decoding them.
#
# grain 0.2.18 (https://google-grain.readthedocs.io, MapDataset.shuffle), processor time.
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18
cat > "$folder/see.py" <<'PYTHON'
import importlib.metadata
import time

import grain


def microseconds(size):
    """Processor time to draw an element, over a few hundred of them."""
    order = grain.MapDataset.range(size).shuffle(seed=7).repeat()
    start = time.process_time()
    for i in range(300):
        order[i]
    return 1e6 * (time.process_time() - start) / 300


grain.MapDataset.range(9).shuffle(seed=7)[0]
print("grain", importlib.metadata.version("grain"))
taken = {size: microseconds(size) for size in (10, 100, 1_000, 10_000, 1_000_000)}
for size, time_of_one in taken.items():
    print(f"{size} elements: {time_of_one:.0f} microseconds an element")
assert taken[10] > 20 * taken[10_000], "small data sets are no longer slow to shuffle"
assert taken[1_000_000] < 3 * taken[10_000]
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
