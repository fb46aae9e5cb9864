"""Contrastive blocks: losses against slow twins, a queue that keeps the last features, a teacher that follows."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mg3d.contrast import FeatureQueue, Teacher, against, nt_xent, two_way


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).unbind()


def test_two_way_is_the_mean_of_both_directions(pair):
    a, b = (F.normalize(x, dim=-1) for x in pair)
    expected = 0.0
    for i in range(5):
        own = (3 * a[i] @ b[i]).exp()
        expected -= (own / (3 * a[i] @ b.T).exp().sum()).log() / 10 + (own / (3 * a @ b[i]).exp().sum()).log() / 10
    torch.testing.assert_close(two_way(*pair, torch.tensor(3.0, dtype=torch.float64)), expected)


def test_two_way_of_orthogonal_pairs_by_hand():
    eye = torch.eye(2)
    assert two_way(eye, 7 * eye, torch.tensor(1.0)).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert two_way(eye[:1], eye[1:], torch.tensor(1.0)).item() == 0


def test_nt_xent_against_a_slow_twin(pair):
    z = F.normalize(torch.cat(pair), dim=-1)
    expected = 0.0
    for i in range(10):
        others = sum((z[i] @ z[k] / 0.5).exp() for k in range(10) if k != i)
        expected -= ((z[i] @ z[(i + 5) % 10] / 0.5).exp() / others).log() / 10
    torch.testing.assert_close(nt_xent(*pair, tau=0.5), expected)


def test_against_a_queue(pair):
    others = torch.randn(7, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    q, k, n = (F.normalize(x, dim=-1) for x in (*pair, others))
    own = ((q * k).sum(-1) / 0.2).exp()
    expected = -(own / (own + (q @ n.T / 0.2).exp().sum(-1))).log().mean()
    torch.testing.assert_close(against(*pair, others, tau=0.2), expected)


@pytest.mark.parametrize(
    "loss", [lambda a, b: two_way(a, b, torch.ones(()).to(a)), lambda a, b: nt_xent(a, b, tau=1.0)]
)
def test_gradients_are_those_of_differences(pair, loss):
    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in pair))


def test_a_queue_keeps_the_last_features_and_moves_after_the_step_alone():
    queue, before = FeatureQueue(5, 3), None
    stream = torch.randn(14, 3)
    for step in range(7):
        before = queue.rows.clone()
        queue.note(torch.zeros(2, 3))  # the first of two passes
        queue.note(stream[2 * step : 2 * step + 2])
        assert torch.equal(queue.rows, before)
        queue.advance()
    kept = F.normalize(stream[-5:], dim=-1)
    assert queue.place == 14 % 5
    torch.testing.assert_close(queue.rows.roll(-int(queue.place), 0), kept)
    queue.eval().note(stream[:1])
    before = queue.rows.clone()
    queue.advance()
    assert torch.equal(queue.rows, before)


def test_a_queue_takes_the_last_of_too_many_and_resumes():
    queue = FeatureQueue(3, 2)
    queue.note(torch.arange(10.0).view(5, 2))
    queue.advance()
    torch.testing.assert_close(queue.rows, F.normalize(torch.arange(4.0, 10.0).view(3, 2), dim=-1))
    other = FeatureQueue(3, 2)
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.note(torch.ones(2, 2))
        q.advance()
    assert torch.equal(queue.rows, other.rows)
    with pytest.raises(ValueError, match="size=0"):
        FeatureQueue(0, 2)


def test_a_teacher_follows_by_its_momentum():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = Teacher(student, momentum=0.75)
    first = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        student(torch.randn(8, 2))
        student[0].weight += 1
    teacher.follow(student)
    torch.testing.assert_close(teacher.module[0].weight, first["0.weight"] + 0.25)
    mean = teacher.module[1].running_mean
    torch.testing.assert_close(mean, 0.25 * student[1].running_mean)
    assert teacher.module[1].num_batches_tracked == 1
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(4, 2)).requires_grad
    assert set(teacher.state_dict()) == {f"module.{name}" for name in student.state_dict()}
    with pytest.raises(ValueError, match="momentum=2"):
        Teacher(student, momentum=2.0)
