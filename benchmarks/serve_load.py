"""How many pictures a server makes for 1, 16 and 64 clients at a time, and how long each of them waits.

    python benchmarks/serve_load.py cifar10-tiny --seconds 60

It starts `nextscale serve` as a process of its own and asks it without pause; half of the requests stream
with previews (``--stream-every 0``: none); labels, seeds and guidance differ. In turn with that it times a
`Generator` in this process, in a thread as the server's: one image at a time, and batches as large as the
server's were, of the same mix of guidance and without previews.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nextscale import Generator

LABELS, GUIDANCE = 10, (0.0, 1.5, 3.0, 5.0)


class Client(threading.Thread):
    """Asks for one picture after the other."""

    def __init__(self, address: str, number: int, until: float, *, stream_every: int) -> None:
        super().__init__()
        self._address, self._number, self._until, self._every = address, number, until, stream_every
        self.seconds: list[float] = []
        self.preview_shares: list[float] = []
        self.statuses: Counter[int] = Counter()

    def run(self) -> None:
        connection, count = http.client.HTTPConnection(self._address, timeout=120), 0
        while time.monotonic() < self._until:
            count += 1
            body: dict[str, Any] = {
                "prompt": str((self._number + count) % LABELS), "seed": 1000 * self._number + count,
                "guidance": GUIDANCE[(self._number + count) % len(GUIDANCE)],
            }  # fmt: skip
            # by fours, so that streams have every guidance too
            if self._every and (self._number + count // len(GUIDANCE)) % self._every == 0:
                body |= {"stream": True, "partial_images": 1 + count % 3}
            start, first = time.monotonic(), None
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/images/generations", json.dumps(body), headers)
            answer = connection.getresponse()
            self.statuses[answer.status] += 1
            if body.get("stream"):
                while line := answer.readline():
                    if first is None and b"partial_image" in line:
                        first = time.monotonic() - start
            else:
                answer.read()
            self.seconds.append(time.monotonic() - start)
            if first is not None:
                self.preview_shares.append(first / self.seconds[-1])
        connection.close()


def metric(address: str, name: str) -> float:
    """A number of the server's own."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def resident_mebibytes(process: int) -> float:
    """Of a process."""
    (line,) = [x for x in Path(f"/proc/{process}/status").read_text().splitlines() if "VmRSS" in x]
    return int(line.split()[1]) / 1024


def load(
    address: str, process: int, clients: int, seconds: float, *, stream_every: int
) -> dict[str, Any]:  # fmt: skip
    """What so many clients saw, and the server."""
    before = {name: metric(address, f"nextscale_batch_images_{name}") for name in ("sum", "count")}
    start = time.monotonic()
    until = start + seconds
    threads = [Client(address, number, until, stream_every=stream_every) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    images, batches = (
        metric(address, f"nextscale_batch_images_{name}") - before[name] for name in ("sum", "count")
    )  # fmt: skip
    waits = sorted(second for thread in threads for second in thread.seconds)
    shares = [share for thread in threads for share in thread.preview_shares]
    statuses: Counter[int] = sum((thread.statuses for thread in threads), Counter())
    return {
        "clients": clients, "images_per_second": len(waits) / took, "batch": images / max(1, batches),
        "p50_s": statistics.median(waits), "p99_s": waits[int(0.99 * (len(waits) - 1))],
        "first_preview_share": statistics.median(shares) if shares else None,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "resident_mib": resident_mebibytes(process),
    }  # fmt: skip


def in_process(generator: Generator, batch: int, seconds: float) -> float:
    """Images per second of a generator alone, at one size of batch, in a thread of its own."""
    rates: list[float] = []
    thread = threading.Thread(target=lambda: rates.append(_rate(generator, batch, seconds)))
    thread.start()
    thread.join()
    return rates[0]


def _rate(generator: Generator, batch: int, seconds: float) -> float:
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        labels = [(count + place) % LABELS for place in range(batch)]
        guidance = [GUIDANCE[(count + place) % len(GUIDANCE)] for place in range(batch)]
        generator(labels, seeds=range(count, count + batch), guidance=guidance)
        count += batch
    return count / (time.monotonic() - start)


def main() -> None:
    """Print a table, and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="cifar10-tiny")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3, help="in which the seconds are divided")
    parser.add_argument("--stream-every", type=int, default=2, help="which requests stream; 0: none")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    command = [
        sys.executable, "-m", "nextscale.cli", "serve", options.model, "--port", "0",
        "--dtype", options.dtype,
    ]  # fmt: skip
    generator = Generator.load(options.model, dtype=options.dtype)
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = urlsplit(server.stdout.readline().split()[1]).netloc
        load(address, server.pid, 16, 3, stream_every=options.stream_every)
        part = options.seconds / options.rounds
        for clients in options.clients:
            served, alone, single = [], [], []
            for _ in range(options.rounds):  # in turn, since the machine changes
                served.append(load(address, server.pid, clients, part, stream_every=options.stream_every))
                batch = max(1, round(statistics.median(row["batch"] for row in served)))
                alone.append(in_process(generator, batch, part / 3))
                single.append(in_process(generator, 1, part / 3))
            rows.append(summary(served, alone, single))
        server.terminate()
        code = server.wait(60)
    print(
        "| clients | images/s | in process, same batch | one at a time | batch | p50, p99 s | preview "
        "| answers | MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        share = f"{row['first_preview_share']:.0%}" if row["first_preview_share"] else "-"
        print(
            f"| {row['clients']} | {row['images_per_second']:.1f} ({row['of_in_process']:.0%}) "
            f"| {row['in_process']:.1f} | {row['one_at_a_time']:.1f} | {row['batch']:.1f} "
            f"| {row['p50_s']:.2f}, {row['p99_s']:.2f} | {share} | {row['statuses']} "
            f"| {row['resident_mib'][0]:.0f} to {row['resident_mib'][-1]:.0f} |"
        )
    print(json.dumps({"model": options.model, "dtype": options.dtype, "exit_code": code, "rows": rows}))


def summary(served: list[dict[str, Any]], alone: list[float], single: list[float]) -> dict[str, Any]:
    """Medians over the rounds."""
    row: dict[str, Any] = {
        name: statistics.median(one[name] for one in served)
        for name in ("clients", "images_per_second", "batch", "p50_s", "p99_s")
    }
    shares = [one["first_preview_share"] for one in served if one["first_preview_share"]]
    statuses: Counter[str] = sum((Counter(one["statuses"]) for one in served), Counter())
    ratios = [one["images_per_second"] / rate for one, rate in zip(served, alone, strict=True)]
    return row | {
        "first_preview_share": statistics.median(shares) if shares else None, "statuses": dict(statuses),
        "resident_mib": [one["resident_mib"] for one in served], "in_process": statistics.median(alone),
        "of_in_process": statistics.median(ratios), "one_at_a_time": statistics.median(single),
    }  # fmt: skip


if __name__ == "__main__":
    main()
