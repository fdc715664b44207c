"""Tables of results that grow row by row and survive being cut off, and tables as docs/benchmarks.rst has them."""

import argparse
import csv
import os
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch


def among(known):
    """A parser of comma-separated names of those."""

    def names(text):
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
        return text.split(",")

    return names


def parser_of(doc, seeds):
    """A parser of the options that benchmarks of several seeds share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=seeds)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS and torch")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    return parser


def machine():
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores, threads: {torch.get_num_threads()}{gpu}"


def print_table(head, rows):
    """Print a table as the page of benchmarks has it; cells are texts."""
    print("\n.. csv-table::\n   :delim: |\n   :header-rows: 1\n")
    for cells in (head, *rows):
        print(f"   {' | '.join(cells)}".rstrip())


@contextmanager
def locked(folder):
    """One process at a time may write there."""
    import fcntl  # which Windows lacks; importing the benchmarks needs it not

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Results:
    """A CSV of which each row is known by its key columns; with `keep`, rows that are there are not computed again."""

    def __init__(self, path, keys, values, keep):
        self.path, self.keys, self.columns = path, keys, [*keys, *values, "date", "machine"]
        self.kept = {self._key(row) for row in self.rows()} if keep else ()

    def _key(self, row):
        return tuple(row[name] for name in self.keys)

    def rows(self):
        """What is there, as dicts of texts."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def lacks(self, *key):
        """Whether that row is still to be computed."""
        return tuple(map(str, key)) not in self.kept

    def add(self, *key, **values):
        """Replace or append the row, on disk at once; other processes may add theirs at the same time."""
        row = dict(zip(self.keys, map(str, key), strict=True))
        row |= {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
        print(*(f"{name}={value}" for name, value in row.items() if value != ""), flush=True)
        row |= {"date": date.today().isoformat(), "machine": machine()}
        with locked(self.path.parent):
            self._write([*(old for old in self.rows() if self._key(old) != self._key(row)), row])

    def _write(self, rows):
        part = self.path.with_suffix(f".{os.getpid()}")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self.path)
