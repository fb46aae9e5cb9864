"""Preparing volumes and reading batches, one core: ours against MONAI's transforms and PersistentDataset, in one run.

    python bench/data.py [--volume some.nii.gz] [--size 512 512 250] [--shape 128 96 128] [--batch 4] [--repeats 3]

**Preparation**, from .nii.gz to the array that training reads. Without --volume a file is written first, in CT-RATE's
layout: a round field of view of smooth tissue with the noise of a scanner, int16, so that it compresses by half, as
CT does. The peer is LoadImage, Orientation, ScaleIntensityRange, CenterSpatialCrop and Resize by area, the fastest of
MONAI's that does not alias; it stores nothing, ours checks the volume, hashes the file, and writes array and sidecar.
Beside both, the plain inflation of the file by isal, which no preparation can beat.

**Cached batch**: our loader's against a DataLoader over PersistentDataset with the same arrays, files in memory.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from measure import Line, arguments, in_turns, machine, table

from mg3d.data.frame import Spec
from mg3d.data.loader import Loader
from mg3d.data.nifti import inflate
from mg3d.data.prepare import prepare_case
from mg3d.data.store import Entry
from mg3d.types import Case

VOLUMES = 12  # of the cached batches
BATCHES = 10  # read in a turn
CLOSE = 0.005  # largest mean difference of two preparations, of a window of 1: 10 HU
SPACING_MM = 370  # width of the field of view, and height of the volume


def scan(size: Sequence[int], path: Path) -> Path:
    """Write a synthetic CT of `size` voxels (left, back, up): two lungs in a body in air, with a scanner's noise."""
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32).reshape([-1 if a == i else 1 for i in range(3)])
               for a, n in enumerate(size))  # fmt: skip
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(0, 30, [max(2, n // 16) for n in size]).astype(np.float32))[None, None]
    hu = torch.nn.functional.interpolate(coarse, tuple(size), mode="trilinear")[0, 0].numpy()
    hu += np.where((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1, 40, -1000).astype(np.float32)
    for side in (-0.4, 0.4):
        hu[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.9) ** 2 < 1] -= 880
    hu[((x - 0.2) / 0.3) ** 2 + (y / 0.3) ** 2 + ((z + 0.4) / 0.4) ** 2 < 1] = 40  # a heart, so that no mirror fits
    hu += rng.standard_normal(size, dtype=np.float32) * 12
    hu[np.broadcast_to(x**2 + y**2 > 1, hu.shape)] = -1024
    affine = np.diag([-SPACING_MM / size[0], -SPACING_MM / size[1], SPACING_MM / size[2], 1])
    nibabel.Nifti1Image(hu.round().clip(-1024, 3000).astype(np.int16), affine).to_filename(path)
    return path


def monai_steps(size: Sequence[int], spec: Spec) -> Callable[[dict[str, str]], dict[str, Any]]:
    """MONAI's transforms that give our prepared array, [1, D, H, W] from feet to head, front to back, right to left."""
    from monai import transforms as t

    keep = [round(c * n) for c, n in zip(spec.crop, (size[2], size[1], size[0]), strict=True)]
    low, high = spec.window_hu
    return t.Compose(
        [
            t.LoadImaged("image", image_only=True, ensure_channel_first=True),
            t.Orientationd("image", axcodes="SPL", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            t.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
            t.CenterSpatialCropd("image", keep),
            t.Resized("image", spec.shape, mode="area"),
        ]
    )


def preparation(volume: Path, spec: Spec, folder: Path, repeats: int) -> list[Line]:
    """Time to prepare `volume`, once the results are known to agree."""
    case, number = Case("a", "a", "train", volume, "A report."), count()
    theirs = monai_steps(nibabel.load(volume).shape, spec)

    def ours() -> Entry:
        place = folder / str(next(number))  # a new folder each time: nothing is known of the case
        place.mkdir()
        found = prepare_case(case, spec=spec, folder=place)
        if not isinstance(found, Entry):
            raise SystemExit(f"{volume}: {found.reason}: {found.detail}")
        return found

    a, b = torch.from_numpy(ours().load()).float(), theirs({"image": str(volume)})["image"][0].as_tensor()
    off, *mirrored = (float((a - x).abs().mean()) for x in (b, b.flip(0), b.flip(1), b.flip(2)))
    assert off < CLOSE < min(mirrored), f"ours and MONAI's prepared volumes differ: {off:.4f}, mirrored {mirrored}"
    rows = {"ours": ours, "monai": lambda: theirs({"image": str(volume)}), "inflate": lambda: inflate(volume)}
    seconds = in_turns(rows, repeats)
    packed, whole = volume.stat().st_size / 2**20, len(inflate(volume)) / 2**20
    print(f"{volume.name}: {packed:.0f} MB packed, {whole:.0f} MB; mean difference of the two: {2000 * off:.1f} HU")
    speed, share = seconds["monai"] / seconds["ours"], seconds["inflate"] / seconds["ours"]
    shown = f"{speed:.2f}x ({seconds['ours']:.2f} s, {seconds['monai']:.2f} s)"
    return [
        Line("preparation from .nii.gz, one core", "≥ 3x MONAI's transforms", shown, speed >= 3),
        Line("its speed", "≥ 70 % of plain inflation", f"{share:.0%} ({seconds['inflate']:.2f} s)", share >= 0.7),
    ]


def cached(shape: Sequence[int], batch: int, folder: Path, repeats: int) -> list[Line]:
    """Time to read a batch of prepared volumes that the system still holds in memory."""
    from monai.data import DataLoader, PersistentDataset

    entries, rng = [], np.random.default_rng(0)
    for i in range(VOLUMES):
        np.save(folder / f"{i}.npy", rng.random(shape, dtype=np.float32).astype(np.float16))
        case = Case(str(i), str(i), "train", folder / f"{i}.nii.gz", "A report.")
        entries.append(Entry(case, folder / f"{i}.npy", folder / f"{i}.json"))
    loader = Loader(entries, batch=batch, seed=0)

    def prepared(path: str) -> torch.Tensor:  # what a chain of MONAI's transforms leaves: float32 with a channel
        return torch.from_numpy(np.load(path)).float()[None]

    data = PersistentDataset([str(e.array) for e in entries], transform=prepared, cache_dir=folder / "monai")
    for i in range(VOLUMES):  # fills the cache
        data[i]

    def theirs(dataset: Any) -> Iterator[torch.Tensor]:
        while True:
            yield from DataLoader(dataset, batch_size=batch, num_workers=0, shuffle=False)

    stream = theirs(data)
    for a, b in zip(loader.all(), theirs(data), strict=False):
        assert torch.equal(a.volume, b), "ours and MONAI's batches differ"
    seconds = in_turns(
        {
            "ours": lambda: [loader.batch(i) for i in range(BATCHES)],
            "monai": lambda: [next(stream) for _ in range(BATCHES)],
        },
        4 * repeats,
    )
    ours, monai = (1000 * seconds[row] / BATCHES for row in ("ours", "monai"))
    shown = f"{monai / ours:.1f}x ({ours:.1f} ms, {monai:.1f} ms)"
    return [Line(f"cached batch of {batch}", "≥ 10x PersistentDataset", shown, monai >= 10 * ours)]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__, threads=1, size=(512, 512, 250), shape=(128, 96, 128), batch=4)
    parser.add_argument("--volume", type=Path, help="a .nii.gz file instead of the synthetic one")
    parser.add_argument("--size", type=int, nargs=3, help="voxels of the synthetic one")
    parser.add_argument("--shape", type=int, nargs=3, help="voxels of a prepared volume")
    parser.add_argument("--batch", type=int)
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    print(machine(options.threads), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        volume = options.volume or scan(options.size, place / "scan.nii.gz")
        found = preparation(volume, Spec(shape=tuple(options.shape)), place, options.repeats)
        found += cached(options.shape, options.batch, place, options.repeats)
    table(found, __file__)


if __name__ == "__main__":
    main()
