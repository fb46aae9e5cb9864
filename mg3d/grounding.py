"""Do the maps point at what the sentences say? The phantom knows the truth, so every map can be scored, with controls.

    python -m mg3d.grounding RUN RUN ...    a table of these runs, with intervals over runs and cases

    rows = ground(run)      one row a sentence, target and map; pandas.DataFrame(rows) is a table
    means(rows, "pointing", by=("map", "label"), where={"target": "finding"})           both of mg3d.metrics:
    contrast(rows, "pointing", "run", "untrained", where={"target": "finding"})         with intervals over cases

A sentence that says that something is there is scored against the voxels of its findings (target "finding"). Every
sentence that one can check in a place is scored against the organs it is about (target "organ"): present, negated and
normal ones apart, by `kind`; organs are large, so that they get no tolerance. Sentences about nothing in the volume
have no target.

map           what is scored
run           the trained model's map of the sentence
untrained     that of the same objective before its first step
permuted      the run's map of another sentence of the same report that speaks of other findings or of none: beaten by
              `run` only if maps differ between sentences
stranger      the run's map of any present sentence of another case
same finding  the run's map of a present sentence of another case with the same label: beaten only if the map follows
              this patient, not the finding's usual place
uniform       the same weight everywhere: exactly chance
ceiling       each token weighs what the mask covers of its cell: about the best that a grid as coarse can do

With few tokens the maximum is bound to the centre of a token, or to the border beyond the outermost centres, and may
miss whatever the model knows. So `pointing_token` asks whether the best token's cell holds any voxel of the mask; its
chance, `share_token`, is the share of such cells.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mg3d import train
from mg3d.data import corpora
from mg3d.data.frame import Spec, prepare_mask
from mg3d.data.phantom.report import Sentence
from mg3d.data.phantom.truth import Truth, load_truth, organ_masks, sentence_masks
from mg3d.data.pool import cores
from mg3d.maps import Attention, attend_all, covered, opened, upsample
from mg3d.metrics import contrast, judge, mask_share, means, near, pointing_game
from mg3d.runs import Run
from mg3d.types import Case

SIZES_ML = (1.0, 10.0, 100.0)  # edges of the size classes: a 12 mm nodule has 1 ml, a 27 mm one 10 ml
SIZES = ("below 1 ml", "1 to 10 ml", "10 to 100 ml", "100 ml or more")
TOLERANCE_MM = 10.0  # a maximum that is this near counts for pointing_near: about two voxels at 64 x 48 x 64

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Targets:
    """What the sentences of a case can be checked against, on the prepared grid."""

    finding: Bool[np.ndarray, "S D H W"]  # empty where the sentence shows none, or all of it was cropped away
    organ: Bool[np.ndarray, "S D H W"]  # empty for sentences about nothing in the volume
    size_ml: Float[np.ndarray, " S"]  # of the findings, in the patient


@dataclass(frozen=True)
class Pool:
    """The present sentences of all cases, whose maps the controls borrow."""

    tokens: Float[np.ndarray, "T d h w"]
    case: np.ndarray  # [T] numbers
    label: np.ndarray  # [T] names

    @classmethod
    def of(cls, found: Sequence[Attention], said: Sequence[Sequence[Sentence]]) -> "Pool":
        """Of the maps of all cases and what their sentences tell."""
        which = [np.array([bool(s.findings) for s in sentences], bool) for sentences in said]
        return cls(
            np.concatenate([a.tokens[w] for a, w in zip(found, which, strict=True)]),
            np.repeat(np.arange(len(said)), [int(w.sum()) for w in which]),
            np.array([s.label for sentences in said for s in sentences if s.findings], dtype=str),
        )


def truth_of(case: Case) -> Truth:
    """The ground truth of a phantom case. ValueError for a case of another corpus."""
    if case.truth is None:
        raise ValueError(f"case {case.id} has no ground truth: only phantom cohorts can be scored")
    return load_truth(case.truth)


def ground(
    run: Run | Path | str,
    *,
    split: str = "test",
    volumes: int = 0,
    layer: int = -1,
    head: int | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    seed: int = 0,
    progress: bool = True,
) -> Rows:
    """Score a run's maps on a split of its phantom cohort, all controls included; rows as of `score`, with the run's id
    and the seed of its recipe.

    `volumes` cases of the split (0: all), chosen as a scale chooses them; `seed` draws what the controls borrow. Raises
    ValueError for a corpus without truth and a split without cases, and what `attend` raises.
    """
    from tqdm import tqdm

    opened_run = opened(run)
    recipe = opened_run.recipe
    listed = corpora.cases(recipe.size.corpus, train.where(recipe)).cases
    cases = train.choose([case for case in listed if case.split == split], volumes=volumes)
    if not cases:
        raise ValueError(f"{train.where(recipe)}: no case in split {split!r}; take train, valid or test")
    truth_of(cases[0])  # before the model is asked
    trained = list(attend_all(opened_run, cases, layer=layer, head=head))
    control = list(attend_all(opened_run, cases, layer=layer, head=head, untrained=True))
    parts = score(trained, untrained=control, tolerance_mm=tolerance_mm, seed=seed)
    bar = tqdm(parts, total=len(cases), desc="scoring maps", unit="case", disable=not progress)
    return [{"run": opened_run.path.name, "seed": recipe.seed, **row} for rows in bar for row in rows]


def score(
    found: Sequence[Attention],
    *,
    untrained: Sequence[Attention] = (),
    truth: Callable[[Case], Truth] = truth_of,
    tolerance_mm: float = TOLERANCE_MM,
    seed: int = 0,
) -> Iterator[Rows]:
    """The rows of each case: a sentence, a target and a map each. One thread a core; the order is that of the cases.

    A row has case, sentence (its number), text, kind, section, label, held_out (worded as never in training), size_ml,
    size, target, map, the measures of `metrics.judge`, pointing_token and share_token; the measures are NaN where the
    target has no voxel on the prepared grid. Raises ValueError where maps and truth tell of different sentences or
    grids.
    """
    said = [matched(truth(a.case), a) for a in found]
    pool = Pool.of(found, said)

    def of_case(number: int) -> Rows:
        attention, sentences, rng = found[number], said[number], np.random.default_rng([seed, number])
        targets = prepared(truth(attention.case), attention)
        own = {"run": attention.tokens}
        if untrained:
            own["untrained"] = untrained[number].tokens
        shows = np.array([bool(s.findings) for s in sentences], bool)
        about = np.array([bool(s.organs) for s in sentences], bool)
        borrowed = _borrow(pool, number, sentences, attention.tokens, rng)
        facts = _facts(attention, sentences, targets.size_ml)
        at_findings = _judged(attention, targets.finding, own | borrowed, which=shows, tolerance_mm=tolerance_mm)
        at_organs = _judged(attention, targets.organ, own, which=about, tolerance_mm=0.0)
        parts = {"finding": at_findings, "organ": at_organs}
        return [{**facts[i], "target": name, **row} for name, part in parts.items() for i, row in part]

    with ThreadPoolExecutor(cores()) as threads:  # sorting and adding let the others work
        yield from threads.map(of_case, range(len(found)))


def matched(truth: Truth, attention: Attention) -> tuple[Sentence, ...]:
    """What is known of each sentence that was read. ValueError where the texts differ, naming the first one."""
    known = truth.sentences[: len(attention.sentences)]
    for told, read in zip(known, attention.sentences, strict=False):
        if told.text != read:
            raise ValueError(f"case {attention.case.id}: read {read!r}, but the truth tells of {told.text!r}")
    if len(known) < len(attention.sentences):
        raise ValueError(f"case {attention.case.id}: {len(attention.sentences)} sentences read, {len(known)} known")
    return known


def prepared(truth: Truth, attention: Attention) -> Targets:
    """The truth of the sentences that were read, on the grid of their maps. ValueError if the volume has another one.

    Each prepared voxel takes the source voxel at its centre, found once for all masks.
    """
    record, count = attention.record, len(attention.sentences)
    if tuple(record["source_shape"]) != truth.organs.shape or not np.allclose(record["source_affine"], truth.affine):
        raise ValueError(f"case {attention.case.id}: truth and volume lie on different grids; make the cohort again")
    spec = Spec(**{k: tuple(v) for k, v in record["spec"].items()})
    source = np.arange(truth.organs.size).reshape(truth.organs.shape)
    nearest = prepare_mask(source, truth.affine, spec)
    finding = sentence_masks(truth)[:count].reshape(count, -1)
    organ = organ_masks(truth)[:count].reshape(count, -1)
    voxel_ml = abs(float(np.linalg.det(truth.affine[:3, :3]))) / 1000
    return Targets(finding[:, nearest], organ[:, nearest], finding.sum(1) * voxel_ml)


def _facts(attention: Attention, sentences: Sequence[Sentence], size_ml: np.ndarray) -> Rows:
    """What a row says of its sentence."""
    sizes = np.digitize(size_ml, SIZES_ML)
    return [
        {
            "case": attention.case.id,
            "sentence": i,
            "text": s.text,
            "kind": s.kind,
            "section": s.section,
            "label": s.label,
            "held_out": s.held_out,
            "size_ml": float(size_ml[i]) if s.findings else 0.0,
            "size": SIZES[sizes[i]] if s.findings else "",
        }
        for i, s in enumerate(sentences)
    ]


def _borrow(
    pool: Pool, number: int, sentences: Sequence[Sentence], tokens: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The maps of the controls for each sentence, [S, d, h, w]; NaN where nobody has one to lend."""
    findings = np.zeros((len(sentences), 1 + max((max(s.findings, default=0) for s in sentences), default=0)), bool)
    for row, s in zip(findings, sentences, strict=True):
        row[list(s.findings)] = True
    elsewhere = np.broadcast_to(pool.case != number, (len(sentences), len(pool.case)))
    alike = np.array([s.label for s in sentences])[:, None] == pool.label
    apart = ~(findings.astype(int) @ findings.T.astype(int) > 0) & ~np.eye(len(sentences), dtype=bool)
    return {
        "permuted": _drawn(tokens, apart, rng),
        "stranger": _drawn(pool.tokens, elsewhere, rng),
        "same finding": _drawn(pool.tokens, elsewhere & alike, rng),
    }


def _drawn(tokens: np.ndarray, may: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row of `may` [S, T] one of the maps [T, d, h, w] that it may take, each as likely."""
    if not may.shape[1]:
        return np.full((len(may), *tokens.shape[1:]), np.nan, np.float32)
    chosen = tokens[(may * (1 - rng.random(may.shape))).argmax(1)]
    return np.where(may.any(1).reshape(-1, 1, 1, 1), chosen, np.float32(np.nan))


def _judged(
    attention: Attention,
    masks: np.ndarray,
    sources: Mapping[str, np.ndarray],
    *,
    which: np.ndarray,
    tolerance_mm: float,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of a sentence, and the scores of one map of it; `sources` are maps [S, d, h, w], `which` has a target."""
    number, masks = np.flatnonzero(which), masks[which]
    close = near(masks, tolerance_mm=tolerance_mm, spacing_mm=attention.spacing_mm)
    cells = covered(masks, attention.grid, stride=attention.stride)
    chance = {"share": mask_share(masks), "share_near": mask_share(close), "share_token": mask_share(cells > 0)}
    uniform = dict.fromkeys(("pointing", "mass", "auprc"), chance["share"])
    uniform |= {"pointing_near": chance["share_near"], "pointing_token": chance["share_token"]}
    uniform |= chance | {"lift": chance["share"] / chance["share"], "spread": np.ones(len(number))}
    yield from _packed("uniform", number, uniform)
    if "permuted" in sources:  # the maps of findings
        sources = {**sources, "ceiling": np.zeros((len(which), *attention.grid), np.float32)}
        sources["ceiling"][which] = np.where(masks.any((1, 2, 3)).reshape(-1, 1, 1, 1), cells, np.float32(np.nan))
    for name, tokens in sources.items():
        some = np.isfinite(tokens[which].sum((1, 2, 3)))  # NaN: nobody had one to lend
        lent = tokens[which][some]
        scores = judge(upsample(lent, attention.shape, stride=attention.stride), masks[some], close=close[some])
        scores |= {"pointing_token": pointing_game(lent, cells[some] > 0), "share_token": chance["share_token"][some]}
        yield from _packed(name, number[some], scores)


def _packed(name: str, number: np.ndarray, scores: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, i in enumerate(number):
        yield int(i), {"map": name, **{key: float(values[row]) for key, values in scores.items()}}


def table(rows: Rows, measures: Sequence[str] = ("pointing", "pointing_near", "mass", "auprc")) -> str:
    """Markdown: the measures of every map at findings, mean (interval), and how `run` differs from each control."""
    where = {"target": "finding"}
    kinds = list(dict.fromkeys(r["map"] for r in rows if r["target"] == "finding"))
    lines = ["map | " + " | ".join(measures), " | ".join(["---"] * (1 + len(measures)))]
    found = {m: {r["map"]: r for r in means(rows, m, where=where)} for m in measures}
    for kind in kinds:
        each = (found[m][kind] for m in measures)
        lines.append(f"{kind} | " + " | ".join(f"{r['mean']:.3f} ({r['low']:.3f}-{r['high']:.3f})" for r in each))
    for kind in kinds:
        if kind not in ("run", "ceiling"):
            each = (contrast(rows, m, "run", kind, where=where) for m in measures)
            text = " | ".join(f"{r['difference']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f})" for r in each)
            lines.append(f"run - {kind} | {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([row for name in sys.argv[1:] for row in ground(name)]))
