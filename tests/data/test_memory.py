"""Reading a set of any number of images takes no more memory than reading a small one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.synthetic_data import make

READ = """
import resource, sys
from halpiee.data.opening import open_data
from halpiee.data.loading import Loading
from halpiee.data.opening import find
data = open_data(find(sys.argv[1], 224), Loading(keep="files", workers=0))
seen = sum(len(x) for epoch in range(2) for x, _ in data.batches(epoch, 8))
print(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kb(folder: Path) -> tuple[int, int]:
    """Returns how many images two epochs show, and the most memory of the process in kB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    seen, peak = map(int, done.stdout.split())
    return seen, peak


@pytest.mark.slow
def test_eight_times_as_many_images_take_no_more_memory(tmp_path: Path) -> None:
    """Decoded, the 448 further images are 67 MB at 224 pixels, and 180 MB as they are."""
    make(tmp_path / "few", images=64, classes=4, test=4)
    make(tmp_path / "many", images=512, classes=4, test=4)
    few, many = peak_kb(tmp_path / "few"), peak_kb(tmp_path / "many")
    assert (few[0], many[0]) == (128, 1024)
    assert many[1] - few[1] < 15_000
