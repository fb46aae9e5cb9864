"""Each loss: a number worked out by hand, a slow twin in float64, its gradient, and padding that changes nothing."""

import math
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mg3d import losses

DOUBLE = torch.float64


def rand(*shape: int, seed: int = 0, grad: bool = False) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return x.requires_grad_(grad)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def real(counts: list[int], size: int) -> torch.Tensor:
    return torch.arange(size) < torch.tensor(counts)[:, None]


# Eq. 2


def test_mim_by_hand():
    volume = torch.zeros(2, 1, 1, 1, 4)
    rebuilt = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 4]]).view(2, 1, 1, 1, 4)
    hidden = torch.tensor([[True, True, False, False], [False, False, False, True]]).view(2, 1, 1, 1, 4)
    assert losses.mim(rebuilt, volume) == pytest.approx((5 / 4 + 16 / 4) / 2)
    assert losses.mim(rebuilt, volume, hidden) == pytest.approx((1 / 2 + 16) / 2)


def test_mim_twin_and_gradient():
    rebuilt, volume = rand(3, 1, 2, 3, 2, grad=True), rand(3, 1, 2, 3, 2, seed=1)
    hidden = rand(3, 1, 2, 3, 2, seed=2) > 0
    twin = sum(((rebuilt[b] - volume[b]) ** 2)[hidden[b]].mean() for b in range(3)) / 3
    torch.testing.assert_close(losses.mim(rebuilt, volume, hidden), twin)
    assert torch.autograd.gradcheck(lambda x: losses.mim(x, volume, hidden), rebuilt)
    assert torch.autograd.gradcheck(lambda x: losses.mim(x, volume), rebuilt)


# Eq. 4

LABELS = torch.tensor([[-100, 2, -100, 0, -100], [-100, -100, 1, -100, -100], [0, 1, 2, 3, 4]])


def test_mlm_by_hand():
    """Report 1: p = 1/4 and 1/2; report 2: p = 1/8."""
    labels = torch.tensor([[1, 0, -100], [-100, -100, 2]])
    p = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.5, 0.375, 0.125]])
    expected = ((math.log(4) + math.log(2)) / 2 + math.log(8)) / 2
    assert losses.mlm(p.log(), labels) == pytest.approx(expected)


def test_mlm_twin_gradient_and_padding():
    logits = rand(8, 6, grad=True)
    each, rows = iter(logits.log_softmax(-1)), []
    for row in LABELS:
        rows.append([-next(each)[int(k)] for k in row if k != -100])
    twin = sum(sum(row) / len(row) for row in rows) / 3
    torch.testing.assert_close(losses.mlm(logits, LABELS), twin)
    assert torch.autograd.gradcheck(lambda x: losses.mlm(x, LABELS), logits)
    longer = torch.nn.functional.pad(LABELS, (0, 4), value=-100)
    assert torch.equal(losses.mlm(logits, longer), losses.mlm(logits, LABELS))


def test_mlm_is_the_mean_of_its_parts():
    logits = rand(8, 6)
    parts = losses.mlm(logits[:2], LABELS[:1]), losses.mlm(logits[2:3], LABELS[1:2]), losses.mlm(logits[3:], LABELS[2:])
    torch.testing.assert_close(sum(parts) / 3, losses.mlm(logits, LABELS))


def test_mlm_of_nothing_is_zero():
    logits = torch.zeros(0, 6, requires_grad=True)
    loss = losses.mlm(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0


# Eq. 5, 6


def test_sfr_by_hand():
    """Cosines 1, 0 and -1, and one that does not count."""
    target = torch.tensor([[[1.0, 0], [0, 2]], [[3.0, 0], [1, 0]]])
    rebuilt = torch.tensor([[[5.0, 0], [1, 0]], [[-1.0, 0], [7, 7]]])
    assert losses.sfr(rebuilt, target, real([2, 1], 2)) == pytest.approx(((0 + 1) / 2 + 2) / 2)
    assert losses.sfr(rebuilt, target, real([2, 1], 2), total=True) == pytest.approx(((0 + 1) + 2) / 2)


def test_sfr_twin_gradient_and_padding():
    rebuilt, target, counts = rand(3, 4, 5, grad=True), rand(3, 4, 5, seed=1), [4, 1, 2]
    mask = real(counts, 4)
    each = [[1 - cosine(rebuilt[b, s], target[b, s]) for s in range(n)] for b, n in enumerate(counts)]
    twin = sum(sum(row) / len(row) for row in each) / 3
    assert losses.sfr(rebuilt, target, mask).item() == pytest.approx(twin, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: losses.sfr(x, target, mask), rebuilt)
    pad = (0, 0, 0, 3)
    more = [torch.nn.functional.pad(x, pad, value=9) for x in (rebuilt, target)]
    torch.testing.assert_close(
        losses.sfr(*more, real(counts, 7)), losses.sfr(rebuilt, target, mask), rtol=1e-14, atol=0
    )
    (grad,) = torch.autograd.grad(losses.sfr(rebuilt, target, mask), rebuilt)
    assert grad[~mask].eq(0).all()


# Eq. 7 to 9, 13


def test_info_nce_by_hand():
    """Patient 1 is sure by a factor e^(1/tau), patient 2 cannot tell."""
    anchor = torch.tensor([[3.0, 0], [1, 1]])
    candidates = torch.tensor([[2.0, 0], [0, 5]])
    expected = (math.log(1 + math.exp(-1 / 0.5)) + math.log(2)) / 2
    assert losses.info_nce(anchor, candidates, tau=0.5) == pytest.approx(expected)


def nce(anchor: torch.Tensor, candidates: torch.Tensor, tau: float) -> float:
    n = len(anchor)
    logits = [[cosine(anchor[i], candidates[j]) / tau for j in range(n)] for i in range(n)]
    return -sum(logits[i][i] - math.log(sum(map(math.exp, logits[i]))) for i in range(n)) / n


def test_cml_and_dfa_twins():
    """Eq. 7 and 8 sum over the F in the denominator, Eq. 13 over the H."""
    h_i, f_i, h_t, f_t = (rand(4, 6, seed=k) for k in range(4))
    two = nce(h_i, f_i, 0.1) + nce(h_t, f_t, 0.1)
    assert losses.cml(h_i, f_i, h_t, f_t, tau=0.1).item() == pytest.approx(two, rel=1e-12)
    f, h = torch.cat([f_t, f_i], 1), torch.cat([h_t, h_i], 1)
    joint = (nce(h, f, 0.1) + nce(f, h, 0.1)) / 2
    assert losses.cml(h_i, f_i, h_t, f_t, tau=0.1, joint=True).item() == pytest.approx(joint, rel=1e-12)
    assert losses.dfa(h_i, f_i, tau=0.2).item() == pytest.approx(nce(f_i, h_i, 0.2), rel=1e-12)
    both = (nce(f_i, h_i, 0.2) + nce(h_i, f_i, 0.2)) / 2
    assert losses.dfa(h_i, f_i, tau=0.2, symmetric=True).item() == pytest.approx(both, rel=1e-12)


def test_contrastive_gradients():
    a, b, c, d = (rand(3, 4, seed=k, grad=True) for k in range(4))
    assert torch.autograd.gradcheck(lambda *x: losses.cml(*x, tau=0.3), (a, b, c, d))
    assert torch.autograd.gradcheck(lambda *x: losses.dfa(*x, tau=0.3), (a, b))


# Eq. 12


def test_ssm_by_hand():
    """Two patients with one and two sentences: the text says (1, 0), the volume says (0, -1)."""
    textual = torch.tensor([[[1.0, 0], [9, 9]], [[2.0, 0], [0, 3]]])
    visual = torch.tensor([[[0.0, 1], [9, 9]], [[4.0, 0], [0, -1]]])
    assert losses.ssm(visual, textual, real([1, 2], 2)) == pytest.approx((1 + 1) / 2)
    assert losses.ssm(visual, textual, real([1, 1], 2)) == pytest.approx(1)
    assert losses.ssm(visual, textual, real([2, 2], 2)) == pytest.approx(ssm_twin(visual, textual, [2, 2]))


def ssm_twin(visual, textual, counts, *, thresholds=False) -> float:
    """Eq. 12 as printed: pairs of patients i < j, then pairs of their sentences."""
    total, patients = 0.0, len(counts)
    for i in range(patients - 1):
        for j in range(i + 1, patients):
            entries = []
            for s in range(counts[i]):
                for t in range(counts[j]):
                    g, p = cosine(textual[i, s], textual[j, t]), cosine(visual[i, s], visual[j, t])
                    if thresholds:
                        g, p = g * (g >= 0.9), p * (g >= 0.9 or g <= 0.6)
                    entries.append(abs(g - p))
            total += sum(entries) / len(entries)
    return 2 * total / (patients * (patients - 1))


@pytest.mark.parametrize("thresholds", [False, True])
def test_ssm_twin_gradient_and_padding(thresholds):
    counts, size = [2, 4, 1, 3], 4
    visual, textual, mask = rand(4, size, 5, grad=True), rand(4, size, 3, seed=1), real(counts, size)
    textual[1, 0] = textual[0, 1] + 0.1 * textual[1, 0]  # one pair alike, one in between
    textual[3, 0] = textual[0, 0] + 0.7 * textual[3, 0]
    loss = losses.ssm(visual, textual, mask, thresholds=thresholds)
    assert loss.item() == pytest.approx(ssm_twin(visual, textual, counts, thresholds=thresholds), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: losses.ssm(x, textual, mask, thresholds=thresholds), visual)
    more = [torch.nn.functional.pad(x, (0, 0, 0, 2), value=-3) for x in (visual, textual)]
    padded = losses.ssm(*more, real(counts, size + 2), thresholds=thresholds)
    torch.testing.assert_close(padded, loss, rtol=1e-13, atol=0)
    (grad,) = torch.autograd.grad(loss, visual)
    assert grad[~mask].eq(0).all()


@pytest.mark.parametrize("thresholds", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_ssm_in_stripes_of_any_height(monkeypatch, rows, thresholds):
    """Stripes that cut through a patient, and one for all, against the matrix as a whole by automatic gradients."""
    counts = [3, 5, 1, 0, 2]
    visual, textual, mask = rand(5, 6, 4, grad=True), rand(5, 6, 3, seed=1), real(counts, 6)
    textual[1, 0] = 2 * textual[0, 1]
    monkeypatch.setattr(losses, "STRIPES", 1)
    monkeypatch.setattr(losses, "STRIPE", rows * sum(counts))
    loss = losses.ssm(visual, textual, mask, thresholds=thresholds)
    found = torch.nn.functional.cosine_similarity(visual[mask][:, None], visual[mask], dim=-1)
    wanted = torch.nn.functional.cosine_similarity(textual[mask][:, None], textual[mask], dim=-1)
    each = (found - wanted).abs()
    if thresholds:
        each = torch.where(wanted >= 0.9, each, torch.where(wanted <= 0.6, found.abs(), 0))
    owner = mask.nonzero()[:, 0]
    weight = torch.tensor([1 / counts[i] for i in owner])
    each = each * weight * weight[:, None] * (owner != owner[:, None])
    torch.testing.assert_close(loss, each.sum() / (4 * 3))
    gradients = (torch.autograd.grad(x, visual)[0] for x in (3 * loss, 3 * each.sum() / 12))
    torch.testing.assert_close(*gradients)


def test_ssm_holds_no_matrix(monkeypatch):
    """Nothing that it makes is larger than its inputs or than a stripe, and padding makes nothing larger."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.size = max(self.size, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    monkeypatch.setattr(losses, "STRIPE", 2**10)
    sizes = []
    for padding in (0, 20):
        visual, textual = rand(64, 4 + padding, 2, grad=True), rand(64, 4 + padding, 2, seed=1)
        with Largest() as largest:
            losses.ssm(visual, textual, real([4] * 64, 4 + padding)).backward()
        sizes.append(largest.size)
    assert sizes == [2**10, 64 * 24 * 2]  # a stripe, and the gradient of the padded features


def test_ssm_does_not_know_the_order():
    """Of the sentences of a patient, and of the patients."""
    visual, textual, mask = rand(3, 4, 5), rand(3, 4, 6, seed=1), real([4, 3, 4], 4)
    loss = losses.ssm(visual, textual, mask)
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(k)) for k in range(3)])
    shuffled = [torch.stack([x[b, order[b]] for b in range(3)]) for x in (visual, textual, mask)]
    torch.testing.assert_close(losses.ssm(*shuffled), loss, rtol=1e-13, atol=0)
    turned = [x[[2, 0, 1]] for x in (visual, textual, mask)]
    torch.testing.assert_close(losses.ssm(*turned), loss, rtol=1e-13, atol=0)


def test_ssm_leaves_out_patients_without_sentences():
    visual, textual = rand(3, 2, 5, grad=True), rand(3, 2, 5, seed=1)
    loss = losses.ssm(visual, textual, real([2, 0, 1], 2))
    torch.testing.assert_close(loss, losses.ssm(visual[[0, 2]], textual[[0, 2]], real([2, 1], 2)))
    loss.backward()
    assert visual.grad.isfinite().all()


def test_ssm_of_zero_vectors_has_a_gradient():
    visual = torch.zeros(2, 2, 3, requires_grad=True)
    losses.ssm(visual, rand(2, 2, 3).float(), real([2, 1], 2)).backward()
    assert visual.grad.isfinite().all()


# Ours


def local_twin(visual, own, textual, counts, *, tau, tau_text) -> float:
    """Sentence by sentence."""
    places = [(b, s) for b, count in enumerate(counts) for s in range(count)]
    total = 0.0
    for b, s in places:
        meant = [math.exp(cosine(textual[b, s], textual[q]) / tau_text) for q in places]
        for anchor, others in ((visual[b, s], own), (own[b, s], visual)):
            shown = [math.exp(cosine(anchor, others[q]) / tau) for q in places]
            kl = sum(
                m / sum(meant) * math.log((m / sum(meant)) / (x / sum(shown)))
                for m, x in zip(meant, shown, strict=True)
            )
            total += kl / counts[b] / len(counts) / 2
    return total


def test_local_twin_gradient_and_padding():
    counts = [3, 1, 2]
    visual, own, textual = (rand(3, 3, e, seed=k, grad=k < 2) for k, e in enumerate((4, 4, 6)))
    options = {"tau": 0.2, "tau_text": 0.3}
    loss = losses.local(visual, own, textual, real(counts, 3), **options)
    assert loss.item() == pytest.approx(local_twin(visual, own, textual, counts, **options), rel=1e-6)
    longer = [torch.cat([x, torch.full((3, 2, x.shape[2]), 7.0, dtype=x.dtype)], 1) for x in (visual, own, textual)]
    assert losses.local(*longer, real(counts, 5), **options).item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda a, b: losses.local(a, b, textual, real(counts, 3), **options), (visual, own))


def test_local_has_no_negatives_among_equals():
    """Two patients with the same finding: the loss is 0 when their sentences look alike, and not when they differ."""
    textual = torch.eye(3, dtype=DOUBLE)[[0, 0, 1, 2]].view(2, 2, 3)
    alike = losses.local(textual, textual, textual, real([2, 2], 2), tau=0.1, tau_text=0.1)
    apart = torch.eye(4, dtype=DOUBLE).view(2, 2, 4)
    assert alike.item() == pytest.approx(0, abs=1e-12)
    assert losses.local(apart, apart, textual, real([2, 2], 2), tau=0.1, tau_text=0.1) > 0.3


def witness_scores(query, key, textual, counts, *, heads, tau_text) -> tuple[list, list]:
    """What each sentence finds in each volume, and how much it is told there: sentence by sentence, head by head."""
    width, patients = query.shape[-1] // heads, range(len(counts))
    found, told = [], []
    for b, s in [(patient, sentence) for patient in patients for sentence in range(counts[patient])]:
        row = []
        for j in patients:
            by_head = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                dots = [(query[b, s, part] @ k[part]).item() / width**0.5 for k in key[j]]
                by_head.append(math.log(sum(math.exp(d) for d in dots) / len(dots)))
            row.append(sum(by_head) / heads)
        found.append(row)
        told.append([max(cosine(textual[b, s], textual[j, t]) for t in range(counts[j])) / tau_text for j in patients])
    return found, told


def kl(wanted: list[float], given: list[float]) -> float:
    """Divergence of softmax(given) from softmax(wanted)."""
    p, q = ([math.exp(x) / sum(map(math.exp, xs)) for x in xs] for xs in (wanted, given))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def witness_twin(query, key, textual, counts, *, heads, tau_text) -> float:
    """Half the mean over a report's sentences, then over reports, and half the mean over volumes."""
    found, told = witness_scores(query, key, textual, counts, heads=heads, tau_text=tau_text)
    each = [kl(t, f) for t, f in zip(told, found, strict=True)]
    share = [1 / n / len(counts) for n in counts for _ in range(n)]
    asked = sum(w * x for w, x in zip(share, each, strict=True))
    columns = zip(zip(*told, strict=True), zip(*found, strict=True), strict=True)
    return (asked + sum(kl(list(t), list(f)) for t, f in columns) / len(counts)) / 2


@pytest.mark.parametrize("heads", [1, 2])
def test_witness_twin_gradient_and_padding(heads):
    counts = [3, 1, 2]
    query, textual = rand(3, 3, 4, seed=1, grad=True), rand(3, 3, 6, seed=2)
    key = rand(3, 5, 4, seed=3, grad=True)
    options = {"heads": heads, "tau_text": 0.3}
    loss = losses.witness(query, key, textual, real(counts, 3), **options)
    assert loss.item() == pytest.approx(witness_twin(query, key, textual, counts, **options), rel=1e-6)
    longer, meant = (
        torch.cat([x, torch.full((3, 2, x.shape[2]), 7.0, dtype=x.dtype)], 1) for x in (query.detach(), textual)
    )
    same = losses.witness(longer, key, meant, real(counts, 5), **options)
    assert same.item() == pytest.approx(loss.item(), rel=1e-9)
    loss_of = partial(losses.witness, textual=textual, real=real(counts, 3), **options)
    assert torch.autograd.gradcheck(loss_of, (query, key))


def test_witness_is_not_satisfied_by_place_alone():
    """Volumes whose tokens differ in place only, however a sentence picks among them, tell no patients apart."""
    place = rand(1, 5, 4).expand(2, 5, 4)
    textual = torch.eye(2, dtype=DOUBLE).view(2, 1, 2)
    one = 50 * rand(1, 1, 4, seed=1).expand(2, 1, 4)
    blind = losses.witness(one, place, textual, real([1, 1], 1), heads=1, tau_text=0.05)
    assert blind.item() == pytest.approx(math.log(2), abs=1e-6)  # both ways: even odds
    for seed in range(5):  # nor do sentences that look at places of their own
        query = 50 * rand(2, 1, 4, seed=seed)
        assert losses.witness(query, place, textual, real([1, 1], 1), heads=1, tau_text=0.05).item() > math.log(2)
    seen = torch.zeros(2, 5, 4, dtype=DOUBLE)
    seen[0, 3, 0] = seen[1, 1, 1] = 10  # a sign of its own in each volume
    query = 10 * torch.eye(4, dtype=DOUBLE)[:2, None]
    assert losses.witness(query, seen, textual, real([1, 1], 1), heads=1, tau_text=0.05).item() < 1e-3


def test_witness_asked_of_volumes_is_not_satisfied_by_one_map_for_all():
    """A volume that shows more of everything answers each sentence alike: it cannot tell which ones are its own."""
    textual = torch.eye(4, dtype=DOUBLE).view(2, 2, 4)
    key = torch.stack([torch.full((5, 4), 3.0), torch.full((5, 4), -3.0)]).to(DOUBLE)
    same = torch.ones(2, 2, 4, dtype=DOUBLE)
    options = {"heads": 1, "tau_text": 0.05}
    assert losses.witness(same, key, textual, real([2, 2], 2), **options).item() > math.log(2) / 2
    own = torch.eye(4, dtype=DOUBLE).view(2, 2, 4)
    assert losses.witness(20 * own, 20 * own, textual, real([2, 2], 2), **options).item() < 1e-3


def test_witness_has_no_negatives_among_equals():
    textual = torch.ones(2, 1, 3, dtype=DOUBLE)
    place, query = rand(1, 5, 4).expand(2, 5, 4), rand(1, 1, 4, seed=1).expand(2, 1, 4)
    assert losses.witness(query, place, textual, real([1, 1], 1), heads=1, tau_text=0.05).item() < 1e-12


def test_witness_of_one_patient_asks_for_each_of_its_sentences_alike():
    """Nobody is there to be told from; what is left is that a volume should show all that its report says."""
    query, key, textual = rand(1, 3, 4, seed=1, grad=True), rand(1, 5, 4), rand(1, 3, 3, seed=2)
    options = {"heads": 1, "tau_text": 0.05}
    losses.witness(query, key, textual, real([1], 3), **options).backward()
    assert query.grad[0, 1:].abs().max() == 0  # not sentences
    query.grad = None
    uneven = losses.witness(query, key, textual, real([3], 3), **options)
    even = losses.witness(query[:, :1].expand(1, 3, 4), key, textual, real([3], 3), **options)
    assert uneven.item() > 1e-3 > 1e-12 > even.item()


def test_clip_is_the_mean_of_both_directions():
    a, b = rand(5, 4, seed=1), rand(5, 4, seed=2)
    assert losses.clip(a, b, tau=0.1).item() == pytest.approx((nce(a, b, 0.1) + nce(b, a, 0.1)) / 2, rel=1e-6)


# All


def calls(seed: int = 0, dtype: torch.dtype = torch.float32, patients: int = 3):
    """Each loss of features, as a function of features alone, with its features."""
    mask = real([3, 2, 1][:patients], 3)
    target, text = rand(patients, 3, 4, seed=8).to(dtype), rand(patients, 3, 5, seed=9).to(dtype)
    flat = [rand(patients, 4, seed=seed + k).to(dtype).requires_grad_() for k in range(4)]
    deep = [rand(patients, 3, 4, seed=seed).to(dtype).requires_grad_()]
    return {
        "sfr": (lambda x: losses.sfr(x, target, mask), deep),
        "ssm": (lambda x: losses.ssm(x, text, mask), deep),
        "cml": (lambda *x: losses.cml(*x, tau=0.1), flat),
        "dfa": (lambda *x: losses.dfa(*x, tau=0.1), flat[:2]),
        "clip": (lambda *x: losses.clip(*x, tau=0.1), flat[:2]),
        "local": (lambda x: losses.local(x, target, text, mask, tau=0.1, tau_text=0.2), deep),
        "witness": (lambda x: losses.witness(x, target, text, mask, heads=2, tau_text=0.2), deep),
    }


@pytest.mark.parametrize("name", ["ssm", "cml", "dfa", "clip"])
def test_one_patient_compares_with_nobody(name):
    loss, inputs = calls(patients=1)[name]
    value = loss(*inputs)
    value.backward()
    assert value == 0
    assert all(x.grad is not None and x.grad.abs().max() < 1e-6 for x in inputs)


@pytest.mark.parametrize("name", ["sfr", "ssm", "cml", "dfa", "clip", "local", "witness"])
def test_half_precision_is_raised(name):
    """Under autocast, on bfloat16 features, the loss is that of the same numbers in float32."""
    loss, inputs = calls(dtype=torch.bfloat16)[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*inputs)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*(x.detach().float() for x in inputs)))
    value.backward()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("name", ["sfr", "ssm", "cml", "dfa", "clip", "local"])
def test_scale_of_features_does_not_matter(name):
    loss, inputs = calls(dtype=DOUBLE)[name]
    torch.testing.assert_close(loss(*(100 * x for x in inputs)), loss(*inputs))
