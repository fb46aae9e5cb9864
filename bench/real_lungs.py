"""Lungs outlined in real CT: fine-tuned on some volumes, predicted on one that was never seen.

    python bench/real_lungs.py FOLDER [--test lung1-001] [--steps 150] [--out real_lungs] [--init RUN]

FOLDER holds `<name>.nii.gz` beside its mask, of the volumes in SOURCES that are there: lung1-001 and lung1-002
(NSCLC-Radiomics, CC BY-NC 3.0; `<name>_seg.nii.gz`: 1 right, 2 left lung) and cip-ct64 (Chest Imaging Platform;
`cip-ct64_regions.nii.gz`: thirds of the left lung 1 to 3, of the right one 4 to 6, vessels 8). Swin-B at a quarter of
its width, from scratch or from a run, voxels of 5 mm, patches of 64^3. Nothing is selected: the last weights are
tested.
`--out` gets the prediction as NIfTI in the frame of its volume and a picture of it.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
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

CLASSES = ("background", "right lung", "left lung")
SOURCES = {  # name: end of its mask's name, and the values of the right lung, of the left one, of either
    "lung1-001": ("_seg", ((1,), (2,), ())),
    "lung1-002": ("_seg", ((1,), (2,), ())),
    "cip-ct64": ("_regions", ((4, 5, 6), (1, 2, 3), (8,))),
}
SPACING_MM, WINDOW_HU = (5.0, 5.0, 5.0), (-1000.0, 500.0)


def lungs(labels: np.ndarray, values: Sequence[tuple[int, ...]]) -> np.ndarray:
    """1 in the right, 2 in the left lung; what belongs to either goes to the side that is nearer."""
    right, left, either = (np.isin(labels, some) for some in values)
    sides = np.where(right, 1, np.where(left, 2, 0)).astype(np.uint8)
    place = ndimage.distance_transform_edt(sides == 0, return_distances=False, return_indices=True)
    assert place is not None
    return np.where(either, sides[tuple(place)], sides)


def cases(folder: Path, *, test: str, work: Path) -> list[Case]:
    """The volumes that are there, with masks of CLASSES written into `work`; `test` is the test split."""
    found = []
    for name, (end, values) in SOURCES.items():
        volume, drawn = folder / f"{name}.nii.gz", work / f"{name}_lungs.nii.gz"
        if volume.is_file():
            image = nifti1.load(folder / f"{name}{end}.nii.gz")
            nifti1.save(nifti1.Nifti1Image(lungs(np.asarray(image.dataobj), values), image.affine), drawn)
            found.append(Case(name, name, "test" if name == test else "train", volume, "", mask=drawn))
    if {case.split for case in found} != {"train", "test"}:
        raise SystemExit(f"{folder}: {test} and at least one more of {', '.join(SOURCES)} are needed")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Train, predict, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", default="lung1-001", choices=SOURCES)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("real_lungs"))
    parser.add_argument("--init", default="", help="id of a pre-training run of Swin-B at this width")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        spec = PatchSpec(SPACING_MM, WINDOW_HU, (options.patch,) * 3, foreground=0.7)
        listing = Listing(cases(options.folder, test=options.test, work=work), [])
        prepared = prepare_masks(listing, classes=CLASSES, spec=spec, folder=work / "cache", workers=1, progress=False)
        train, (test,) = ([e for e in prepared.entries if e.case.split == s] for s in ("train", "test"))
        task, found = learnt(train, test, spec=spec, steps=options.steps, init=options.init, run=Run(work / "run"))
        judged(task, found, test, out=options.out)


def learnt(
    train: list[Entry], test: Entry, *, spec: PatchSpec, steps: int, init: str, run: Run
) -> tuple[Segment, Predictions]:
    """The task after so many steps, and what it says about the test volume."""
    torch.manual_seed(0)
    encoder = encoders.build("swin_b", shrink=4, shape=spec.patch)
    if init:
        load_weights(encoder, paths.runs() / init / "encoder.safetensors")
    task = Segment(encoder, names=CLASSES, patch=spec.patch, spacing_mm=SPACING_MM)
    plan = Transfer(study="msd06", steps=steps, batch=2, lr=1e-3, lr_head=2e-3)  # for its numbers alone
    run.path.mkdir()
    start = time.process_time()
    last = fit(task, run, recipe=plan, train=PatchLoader(train, spec=spec, batch=2, seed=0))
    trained = time.process_time()
    found = predict(task, PatchLoader([test], spec=spec, batch=1, seed=0), plan=plan)
    names = ", ".join(entry.case.id for entry in train)
    print(f"{steps} steps on {names}: loss {last['loss']:.3f}, {trained - start:.0f} s of CPU time")
    print(f"{test.case.id} predicted in {time.process_time() - trained:.0f} s of CPU time; at {SPACING_MM[0]:g} mm:")
    return task, found


def judged(task: Segment, found: Predictions, test: Entry, *, out: Path) -> None:
    """Print the scores, on the prepared grid and in the frame of the volume; write the prediction and its picture."""
    for name, value in task.score(found.predictions, found.targets).items():
        print(f"  {name:18} {value:.3f}")
    out.mkdir(parents=True, exist_ok=True)
    file, picture = (out / f"{test.case.id}_lungs{end}" for end in (".nii.gz", ".png"))
    to_source(found.predictions[0], test.record, file)
    image, drawn = read_scan(test.case.volume), test.case.mask
    assert drawn is not None  # `cases` gives one to each
    predicted, true = (read_mask(f, image=image, classes=CLASSES) for f in (file, drawn))
    print("in the frame of the volume:")
    for number, name in enumerate(CLASSES[1:], 1):
        here = [mask == number for mask in (predicted, true)]
        dice = 2 * (here[0] & here[1]).sum() / max(1, here[0].sum() + here[1].sum())
        x = [f"{(image.affine @ [*np.argwhere(m).mean(0), 1])[0]:.0f}" if m.any() else "nowhere" for m in here]
        print(
            f"  {name:11} Dice {dice:.3f}; its middle lies at x = {x[0]} mm, in truth at {x[1]} mm (right is positive)"
        )
    said = {"ids": found.ids, "dice": task.table(found.predictions, found.targets)["dice"]}
    said |= {"volume": image.hu, "affine": image.affine, "predicted": predicted, "true": true, "window": (1500, -600)}
    picture.write_bytes(predictions.masks(said, title="lungs, outlined").png())
    print(f"{file}\n{picture}")


if __name__ == "__main__":
    main()
