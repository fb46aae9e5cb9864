"""Every encoder of the table keeps the contract; weights are loaded whole or not at all."""

import os
import pickle
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mg3d.encoders import ENCODERS, Encoder, build
from mg3d.encoders.swin import Swin
from mg3d.encoders.weights import find_prefix, load_weights, read_tensors

ODD = (40, 33, 50)
NAMES = list(ENCODERS)


@pytest.fixture(params=NAMES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    return build(request.param, shrink=4, shape=(64, 48, 64))


def volumes(count: int = 1, shape: tuple[int, int, int] = ODD, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "millions"), [("swin_b", 8.062002), ("swin_l", 31.593474), ("unet", 15.808608), ("vit_b", 88.497408)]
)
def test_sizes_are_those_of_the_paper(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name).parameters()) == round(millions * 1e6)


@pytest.mark.parametrize("shape", [ODD, (32, 32, 32), (33, 64, 9)])
def test_levels_have_the_promised_widths_and_grids(encoder: Encoder, shape: tuple[int, int, int]) -> None:
    with torch.no_grad():
        pyramid = encoder(volumes(2, shape))
    for level, width, stride in zip(pyramid.levels, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-n // stride) for n in shape))
    assert list(encoder.strides) == sorted(encoder.strides)


def test_a_volume_does_not_see_its_neighbours(encoder: Encoder) -> None:
    x = volumes(3)
    with torch.no_grad():
        together, alone = encoder(x), encoder(x[1:2])
    for a, b in zip(together.levels, alone.levels, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)


def test_hidden_voxels_change_nothing(encoder: Encoder) -> None:
    mask = torch.zeros(1, 5, 3, 5, dtype=torch.bool)  # cells of 8 x 11 x 10 voxels
    mask[0, 1:3, 1, 2:4] = True
    x, changed, seen = volumes(), volumes(), volumes()
    changed[:, :, 8:24, 11:22, 20:40] = 7.0
    seen[:, :, 0, 0, 0] += 1
    with torch.no_grad():
        a, b, c = (encoder(v, mask).levels for v in (x, changed, seen))
        unmasked = encoder(x).levels
    assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], unmasked[0])


def test_every_parameter_gets_a_gradient(encoder: Encoder) -> None:
    levels = encoder(volumes(1, (48, 33, 50))).levels
    torch.autograd.backward(levels, [torch.randn_like(level) for level in levels])
    dead = [
        n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert not dead


def test_deterministic_and_the_same_in_training_and_evaluation(encoder: Encoder) -> None:
    grads = []
    for mode in (True, True, False):
        encoder.train(mode).zero_grad()
        levels = encoder(volumes()).levels
        sum(level.square().mean() for level in levels).backward()
        grads.append([*levels, *(p.grad for p in encoder.parameters())])
    for again in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], again, strict=True))


def test_bf16_autocast_is_finite_and_close(encoder: Encoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(volumes())
    half.pooled.float().square().sum().backward()
    with torch.no_grad():
        full = encoder(volumes())
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    assert torch.corrcoef(torch.stack([half.tokens.float().flatten(), full.tokens.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_impossible_shrinks_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="shrink=5"):
        build(name, shrink=5)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"swim_b.*swin_b, swin_l, unet, vit_b"):
        build("swim_b")
    with pytest.raises(ValueError, match="multiple of 3"):
        Swin(feature=16)  # in 3 heads
    with pytest.raises(ValueError, match="multiple of 12"):
        build("vit_b", shrink=128)
    with pytest.raises(ValueError, match="exceed 8"):
        build("unet", shrink=48)(torch.zeros(1, 1, 8, 8, 8))


def test_positions_of_vit_are_those_learned_at_the_learned_size() -> None:
    vit = build("vit_b", shrink=64, shape=(64, 48, 32))
    assert vit.patch_embedding.positions((4, 3, 2)) is vit.patch_embedding.position_embeddings
    with torch.no_grad():
        vit.patch_embedding.position_embeddings.fill_(3.0)
    torch.testing.assert_close(vit.patch_embedding.positions((5, 1, 7)), torch.full((1, 35, 12), 3.0))


def test_unet_normalises_as_batch_normalisation_does_on_one_volume() -> None:
    block = build("unet", shrink=12).get_submodule("down_tr64.ops.0")
    with torch.no_grad():
        block.bn1.weight.uniform_(0.5, 2)
        x = volumes(1, (9, 8, 7))
        batch = torch.nn.functional.batch_norm(
            block.conv1(x), None, None, block.bn1.weight, block.bn1.bias, training=True
        )
        torch.testing.assert_close(block(x), batch.relu())


# --- weights ---------------------------------------------------------------------------------------------------------


def layouts(state: dict[str, torch.Tensor]) -> dict[str, dict]:
    """The layouts in which the official and neighbouring projects keep an encoder."""
    flat = {f"vision_encoder.{k}": v for k, v in state.items()}
    text = {"language_encoder.pooler.dense.weight": torch.zeros(3, 3), "itc_head.vision_ln.bias": torch.zeros(2)}
    return {
        "bare": state,
        "official flat": flat | text,
        "lightning": {"state_dict": flat | text, "epoch": 3, "hyper_parameters": {"config": {"lr": 2e-5}}, "loops": {}},
        "parallel": {"model": {f"module.{k}": v for k, v in state.items()}},
        "swinunetr": {
            "state_dict": {f"module.swinViT.{k}": v for k, v in state.items()} | {"module.out.bias": torch.ones(2)}
        },
        "arguments": {"opt": Namespace(lr=0.1), "net": {f"swinViT.{k}": v for k, v in state.items()}},
        "half": {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    }


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build("swin_b", shrink=4).state_dict()


@pytest.mark.parametrize("layout", ["bare", "official flat", "lightning", "parallel", "swinunetr", "arguments", "half"])
def test_every_layout_loads_whole(state: dict, layout: str, tmp_path) -> None:
    torch.save(layouts(state)[layout], tmp_path / "w.ckpt", _use_new_zipfile_serialization=layout != "parallel")
    fresh = build("swin_b", shrink=4)
    loaded = load_weights(fresh, tmp_path / "w.ckpt")
    assert (len(loaded.matched), loaded.missing, loaded.unexpected, loaded.fraction) == (126, (), (), 1.0)
    tolerance = 1e-3 if layout == "half" else 0.0
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=tolerance, atol=tolerance)


def test_safetensors_and_dictionaries(state: dict, tmp_path) -> None:
    save_file({f"encoder.{k}": v for k, v in state.items()}, tmp_path / "w.safetensors")
    assert load_weights(build("swin_b", shrink=4), tmp_path / "w.safetensors").prefix == "encoder."
    assert load_weights(build("swin_b", shrink=4), state).prefix == ""


def test_failures_are_loud_and_change_nothing(state: dict, tmp_path) -> None:
    fresh = build("swin_b", shrink=4)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    renamed = {k.replace("mlp.linear", "mlp.fc"): v for k, v in state.items()}
    wider = build("swin_b", shrink=2).state_dict()
    with pytest.raises(ValueError, match=r"94 of 126 .*mlp.linear1.weight.* and 29 more"):
        load_weights(fresh, renamed)
    with pytest.raises(ValueError, match=r"0 of 126 .*'vision_encoder\.'.*the file has: patch_embed"):
        load_weights(fresh, state, prefix="vision_encoder.")
    with pytest.raises(ValueError, match="0 of 126"):
        load_weights(fresh, {"other": torch.zeros(1)}, at_least=0.0)
    with pytest.raises(
        ValueError, match=r"other shapes .*patch_embed.proj.weight \(24, 1, 2, 2, 2\) for \(12, 1, 2, 2, 2\)"
    ):
        load_weights(fresh, wider)
    with pytest.raises(ValueError, match=r"2 times; choose with prefix= one of \['student\.', 'teacher\.'\]"):
        load_weights(fresh, {f"{who}.{k}": v for k, v in state.items() for who in ("student", "teacher")})
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    partly = load_weights(fresh, renamed, at_least=0.7)
    assert (len(partly.missing), len(partly.unexpected)) == (32, 32)


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_code_is_refused(zipped: bool, tmp_path) -> None:
    evil = Evil()
    evil.path = str(tmp_path / "ran")
    torch.save(
        {"state_dict": {"w": torch.zeros(1)}, "x": evil}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(ValueError, match=r"refused to read .*posix\.mkdir.*safetensors"):
        read_tensors(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files_are_named(state: dict, tmp_path) -> None:
    torch.save(state, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 5, 1000, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                read_tensors(tmp_path / name)
    (tmp_path / "w.pt").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="is damaged or no PyTorch file"):
        read_tensors(tmp_path / "w.pt")
    (tmp_path / "list.pt").write_bytes(pickle.dumps([1], protocol=2))
    with pytest.raises(ValueError, match=r"list\.pt"):
        read_tensors(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no tensors by name"):
        read_tensors(tmp_path / "empty.pt")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent.pt")


def test_prefix_none_wins_a_tie() -> None:
    tensors = {"a.weight": torch.zeros(1), "ema.a.weight": torch.zeros(1)}
    assert find_prefix({"a.weight"}, tensors) == ""
    assert find_prefix({"b"}, tensors) == ""
    assert (
        load_weights(nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)}), {"x.y.a.weight": torch.ones(1, 1)}).prefix
        == "x.y."
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_recomputing_is_offered_or_refused(name):
    if name.startswith("swin"):
        assert build(name, shrink=4, recompute=True).recompute
    else:
        with pytest.raises(ValueError, match=f"recompute: {name} does not offer it"):
            build(name, shrink=4, recompute=True)
