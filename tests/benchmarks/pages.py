"""How long each page of the web GUI takes with many Fireworks on the local server.

Usage: python tests/benchmarks/pages.py [--size 10000] [--launchpad FILE]

The server is a process of its own, `dftfactory webgui` as typed; the LaunchPad is made up (tests/many_fireworks.py),
or a given one. `first` is the first request for a page, `median` that of three more, 2.1 s apart, so that what is kept
for 2 s is asked for anew. Nothing else asks in the meantime.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from dftfactory import DFTConfig
from dftfactory.launchpad import load_launchpad
from dftfactory.local_launchpad import start_local_launchpad, stop_local_launchpad

STOCK = (
    *("/", "/fw/", "/fw/COMPLETED/", "/fw/COMPLETED/?page=200", "/fw/FIZZLED/updated_on/ASCENDING/", "/wf/"),
    *("/wf/COMPLETED/created_on/DESCENDING/", "/fw/5000", "/fw/5000/details", "/wf/5000", "/wf/5000/json"),
    *("/report/", "/report/years/10", "/dashboard/", "/reports/fireworks/hours/12/fig.png"),
    *("/reports/workflows/years/10/fig.png", '/?fw_query={"state":"FIZZLED"}', '/?fw_query={"fw_id":5000}'),
)
OURS = (
    *("/dft/", "/dft/api/overview", "/dft/structures", "/dft/api/structures", "/dft/structures/5000"),
    *("/dft/api/structures/5000", "/dft/plotly.min.js", "/dft/static/dft.js"),
)


def main() -> None:
    """Measure every page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10000)
    parser.add_argument("--launchpad", type=Path, help="measure with this one")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()}")
    if options.launchpad:
        measure(options.launchpad)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from every_state import write_pseudopotentials
    from many_fireworks import plant_many

    with tempfile.TemporaryDirectory(prefix="dftfactory-pages-") as folder:
        local = start_local_launchpad(Path(folder) / "launchpad")
        try:
            config = DFTConfig(pseudopotential_dir=str(write_pseudopotentials(Path(folder))), ecutwfc=40, kspacing=0.3)
            plant_many(load_launchpad(local.launchpad_file), options.size, config)
            measure(local.launchpad_file)
        finally:
            stop_local_launchpad(local.folder)


def measure(launchpad_file: Path) -> None:
    """Print the times of all pages of a LaunchPad."""
    command = [sys.executable, "-m", "dftfactory.cli", "webgui", "-l", str(launchpad_file), "--port", "5990"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if line.startswith("open "))
        found = re.search(r"http://[^/]*", line)
        assert found is not None
        print(f"{'page':48} {'first':>7} {'median':>7}   seconds")
        for page in (*STOCK, *OURS):
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                with urllib.request.urlopen(found[0] + page.replace('"', "%22"), timeout=120) as answer:  # noqa: S310
                    answer.read()
                seconds.append(time.perf_counter() - began)
                time.sleep(2.1)
            print(f"{page:48} {seconds[0]:7.3f} {statistics.median(seconds[1:]):7.3f}", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
