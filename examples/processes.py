"""Train one VAE in several processes, each of which has its own rows.

    torchrun --standalone --nproc-per-node 2 examples/processes.py

Every process slices the same file here; rows may just as well differ in kind of storage and in number. Run by plain
`python` it is the fit of one process.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch.distributed as dist

from skvae import VAETransformer


def table(n_rows):
    """Rows on a curve in twelve dimensions, with noise."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, size=(n_rows, 1))
    curve = np.hstack([np.sin(k * angles) for k in range(1, 13)])
    return (curve + 0.2 * rng.normal(size=curve.shape)).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--iterations", type=int, default=5, help="passes over the rows")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "skvae-processes")
    args = parser.parse_args()
    if "WORLD_SIZE" in os.environ:  # as torchrun sets it
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        np.save(args.out / "rows.npy", table(args.rows))
    if world > 1:
        dist.barrier()
    rows = np.load(args.out / "rows.npy", mmap_mode="r")
    start, stop = (args.rows * i // world for i in (rank, rank + 1))
    vae = VAETransformer(z_dim=2, max_iter=args.iterations, random_state=0, checkpoint=args.out / "checkpoints")
    vae.fit(rows[start:stop])
    if rank == 0:
        vae.save(args.out / "vae.skvae")
        print(f"{world} process(es), {args.rows} rows: {vae.score(rows[:2000]):.3f} nats per row")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
