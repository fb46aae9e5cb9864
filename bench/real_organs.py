"""Lungs or the heart outlined in real CT: fine-tuned on some volumes, predicted on one that was never seen.

    python bench/real_organs.py FOLDER [--organ lungs] [--test lung1-001] [--steps 400] [--out real_organs] [--init RUN]

FOLDER holds `<name>.nii.gz` beside its mask, of the volumes of ORGANS that are there: lung1-001 and lung1-002
(NSCLC-Radiomics, CC BY-NC 3.0; `<name>_seg.nii.gz`: 1 right, 2 left lung, 3 heart), cip-ct64 (Chest Imaging Platform;
`cip-ct64_regions.nii.gz`: thirds of the left lung 1 to 3, of the right one 4 to 6, vessels 8) and ts-pulmonary
(TotalSegmentator's tests; `ts-pulmonary_seg.nii.gz`: 1 heart). Swin-B at a quarter of its width, from scratch or from a
run, voxels of 5 mm, patches of 48^3 in other poses and lights. Nothing is selected: the last weights are tested.
`--out` gets the prediction as NIfTI in the frame of its volume and a picture of it.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nibabel import nifti1
from scipy import ndimage

from mg3d import encoders, paths
from mg3d.data.cohorts import Listing
from mg3d.data.masks import prepare_masks, read_mask, read_scan, to_source
from mg3d.data.patches import PatchLoader, PatchSpec
from mg3d.data.store import Entry
from mg3d.encoders.weights import load_weights
from mg3d.fit import fit
from mg3d.runs import Run
from mg3d.tasks.segment import Segment
from mg3d.transfer import Transfer
from mg3d.tune import Predictions, predict
from mg3d.types import Case
from widgets import predictions

SPACING_MM = (5.0, 5.0, 5.0)
AIR_HU = -500  # what is denser is body, or the table

Values = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Organ:
    """What is outlined, in which window it is learnt, and where masks of it are."""

    classes: tuple[str, ...]
    window_hu: tuple[float, float]
    shown: tuple[int, int]  # width and level of the greys in the picture
    sources: Mapping[str, tuple[str, Values]]  # name: end of its mask's name, values of each class, of any of them


ORGANS = {
    "lungs": Organ(
        ("background", "right lung", "left lung"),
        (-1000.0, 500.0),
        (1500, -600),
        {
            "lung1-001": ("_seg", ((1,), (2,), ())),
            "lung1-002": ("_seg", ((1,), (2,), ())),
            "cip-ct64": ("_regions", ((4, 5, 6), (1, 2, 3), (8,))),
        },
    ),
    "heart": Organ(
        ("background", "heart"),
        (-160.0, 340.0),  # from fat to contrast medium
        (400, 40),
        {"lung1-002": ("_seg", ((3,), ())), "ts-pulmonary": ("_seg", ((1,), ()))},
    ),
}


def drawn(labels: np.ndarray, values: Values) -> np.ndarray:
    """The number of its class in each voxel; what belongs to any of them goes to the one that is nearest."""
    *each, either = (np.isin(labels, some) for some in values)
    found = np.select(each, range(1, len(values)), 0).astype(np.uint8)
    place = ndimage.distance_transform_edt(found == 0, return_distances=False, return_indices=True)
    assert place is not None
    return np.where(either, found[tuple(place)], found)


def cases(folder: Path, *, organ: Organ, test: str, work: Path) -> list[Case]:
    """The volumes that are there, with masks of the organ written into `work`; `test` is the test split."""
    found = []
    for name, (end, values) in organ.sources.items():
        volume, mask = folder / f"{name}.nii.gz", work / f"{name}_mask.nii.gz"
        if volume.is_file():
            image = nifti1.load(folder / f"{name}{end}.nii.gz")
            nifti1.save(nifti1.Nifti1Image(drawn(np.asarray(image.dataobj), values), image.affine), mask)
            found.append(Case(name, name, "test" if name == test else "train", volume, "", mask=mask))
    if {case.split for case in found} != {"train", "test"}:
        raise SystemExit(f"{folder}: {test} and at least one more of {', '.join(organ.sources)} are needed")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Train, predict, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--organ", default="lungs", choices=ORGANS)
    parser.add_argument("--test", default="", help="the volume that is predicted; else the organ's first one")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("real_organs"))
    parser.add_argument("--init", default="", help="id of a pre-training run of Swin-B at this width")
    options = parser.parse_args(words)
    organ = ORGANS[options.organ]
    test = options.test or next(iter(organ.sources))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        spec = PatchSpec(SPACING_MM, organ.window_hu, (options.patch,) * 3)
        listing = Listing(cases(options.folder, organ=organ, test=test, work=work), [])
        how = {"classes": organ.classes, "spec": spec, "folder": work / "cache"}
        prepared = prepare_masks(listing, **how, workers=1, progress=False)
        train, (tested,) = ([e for e in prepared.entries if e.case.split == s] for s in ("train", "test"))
        task = learnt(train, organ=organ, spec=spec, steps=options.steps, init=options.init, run=Run(work / "run"))
        found = predict(task, PatchLoader([tested], spec=spec, batch=1, seed=0), plan=plan(options.steps))
        judged(task, found, tested, organ=organ, out=options.out / options.organ)


def plan(steps: int) -> Transfer:
    """How it learns. The study is there for the numbers alone."""
    return Transfer(study="msd06", steps=steps, batch=2, lr=1e-3, lr_head=2e-3)


def learnt(train: list[Entry], *, organ: Organ, spec: PatchSpec, steps: int, init: str, run: Run) -> Segment:
    """The task after so many steps."""
    torch.manual_seed(0)
    encoder = encoders.build("swin_b", shrink=4, shape=spec.patch)
    if init:
        load_weights(encoder, paths.runs() / init / "encoder.safetensors")
    task = Segment(encoder, names=organ.classes, patch=spec.patch, spacing_mm=SPACING_MM)
    task.augment = True
    run.path.mkdir()
    start = time.process_time()
    last = fit(task, run, recipe=plan(steps), train=PatchLoader(train, spec=spec, batch=2, seed=0))
    names = ", ".join(entry.case.id for entry in train)
    print(f"{steps} steps on {names}: loss {last['loss']:.3f}, {time.process_time() - start:.0f} s of CPU time")
    return task


def judged(task: Segment, found: Predictions, test: Entry, *, organ: Organ, out: Path) -> None:
    """Print the scores, on the prepared grid and in the frame of the volume; write the prediction and its picture."""
    print(f"{test.case.id} at {SPACING_MM[0]:g} mm:")
    for name, value in task.score(found.predictions, found.targets).items():
        print(f"  {name:18} {value:.3f}")
    out.mkdir(parents=True, exist_ok=True)
    file, picture = (out / f"{test.case.id}{end}" for end in (".nii.gz", ".png"))
    to_source(found.predictions[0], test.record, file)
    image, mask = read_scan(test.case.volume), test.case.mask
    assert mask is not None  # `cases` gives one to each
    predicted, true = (read_mask(f, image=image, classes=task.names) for f in (file, mask))
    print("in the frame of the volume:")
    inside = np.where(body(image.hu), predicted, 0)
    for number, name in enumerate(task.names[1:], 1):
        here = [labels == number for labels in (predicted, true)]
        x, ml = zip(*(middle(some, image.affine) for some in here), strict=True)
        print(
            f"  {name:11} Dice {overlap(*here):.3f}, {overlap(inside == number, here[1]):.3f} inside the body; "
            f"{ml[0]:.0f} ml about x = {x[0]} mm, in truth {ml[1]:.0f} ml about {x[1]} mm (right is positive)"
        )
    wrong = (predicted > 0) & (predicted != true)
    air, swapped = (wrong & (inside == 0)).sum(), (wrong & (true > 0)).sum()
    print(f"  {wrong.sum()} voxels are wrong, {air} of them outside the body, {swapped} in another structure")
    said = {"ids": found.ids, "dice": task.table(found.predictions, found.targets)["dice"], "window": organ.shown}
    said |= {"volume": image.hu, "affine": image.affine, "predicted": predicted, "true": true}
    picture.write_bytes(predictions.masks(said, title=" and ".join(task.names[1:]) + ", outlined").png())
    print(f"{file}\n{picture}")


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks, 0 where both are empty."""
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def middle(mask: np.ndarray, affine: np.ndarray) -> tuple[str, float]:
    """Where the middle of a structure lies from left to right, in mm, and its volume in ml."""
    ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    return (f"{(affine @ [*np.argwhere(mask).mean(0), 1])[0]:.0f}" if mask.any() else "nowhere"), ml


def body(hu: np.ndarray) -> np.ndarray:
    """The largest piece that is denser than AIR_HU, filled slice by slice."""
    pieces, _ = ndimage.label(hu > AIR_HU)  # pyright: ignore[reportGeneralTypeIssues]
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return np.stack([np.asarray(ndimage.binary_fill_holes(plane)) for plane in np.moveaxis(largest, 2, 0)], 2)


if __name__ == "__main__":
    main()
