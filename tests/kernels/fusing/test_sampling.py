"""kernels.fuse's part for samplers as CUT's F: known by what they do, with their own draw, right when changed."""

import copy
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import kernels
from kernels.fusing import sampling

WIDTHS = (3, 6, 5)


class Unit(nn.Module):
    def forward(self, x):
        return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-7)


class Sampler(nn.Module):
    """What CUT's F computes. The MLPs are made at the first call, from the maps' channels; `draws` and `copies` are the
    published differences: whose random numbers, and whether ids that are given come back as new tensors."""

    draws, copies = "numpy", True

    def __init__(self, width=0, devices=()):
        super().__init__()
        self.unit = Unit()
        self.width = width
        self.made = not width
        self.devices = list(devices)

    def make(self, maps):
        for i, x in enumerate(maps):
            layers = nn.Linear(x.shape[1], self.width), nn.ReLU(), nn.Linear(self.width, self.width)
            setattr(self, f"mlp_{i}", nn.Sequential(*layers).to(x))
        self.made = True

    def positions(self, count, wanted, x):
        if self.draws == "torch":
            return torch.randperm(count, device=x.device)[:wanted]
        return torch.from_numpy(np.random.permutation(count)[:wanted]).to(x.device)

    def forward(self, maps, wanted=64, ids=None):
        if not self.made:
            self.make(maps)
        found, used = [], []
        for i, x in enumerate(maps):
            channels_last = x.permute(0, 2, 3, 1).flatten(1, 2)
            at = []
            if wanted:
                at = self.positions(channels_last.shape[1], wanted, x) if ids is None else ids[i]
                at = torch.as_tensor(at).clone() if self.copies else at
                channels_last = channels_last[:, at]
            rows = channels_last.flatten(0, 1)
            rows = getattr(self, f"mlp_{i}")(rows) if self.width else rows
            rows = self.unit(rows)
            found.append(rows if wanted else rows.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2))
            used.append(at)
        return found, used


class TorchSampler(Sampler):
    draws, copies = "torch", False


def maps(batch=2, dtype=torch.float64, sides=(8, 6, 4), seed=0, channels_last=False):
    generator = torch.Generator().manual_seed(seed)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.randn(batch, c, side, side + 1, dtype=dtype, generator=generator)
        .contiguous(memory_format=memory)
        .requires_grad_()
        for c, side in zip(WIDTHS, sides)
    ]


def ready(kind, width=7, dtype=torch.float64):
    torch.manual_seed(3)
    model = kind(width)
    model(maps(dtype=dtype), 5)
    return model


def fused_copy(model):
    """As kernels.fuse does it, once it knows samplers."""
    model = copy.deepcopy(model)
    assert sampling.looks_like(model) and sampling.take(model) == ""
    return model


def generators():
    numpys = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().tolist(), (numpys["key"].tolist(), numpys["pos"]), random.getstate()


def outcome(model, given, *call, seed=7, **named):
    """Rows, ids, gradients, and where the random generators are afterwards."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    rows, ids = model(given, *call, **named)
    after = generators()
    inputs = [*given, *model.parameters()]
    grads = torch.autograd.grad(sum(x.double().pow(3).sum() for x in rows), inputs, allow_unused=True)
    return rows, ids, grads, after


def check_same(got, want, tolerance=1e-12):
    assert got[3] == want[3]
    assert len(got[1]) == len(want[1])
    for a, b in zip(got[1], want[1]):
        assert type(a) is type(b)
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=0)
    for a, b in zip((*got[0], *got[2]), (*want[0], *want[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def served(monkeypatch):
    """How many maps the operator has sampled."""
    seen = []

    def counted(features, *args, **named):
        seen.extend(features)
        return kernels.sample_patches(features, *args, **named)

    monkeypatch.setattr(sampling, "sample_patches", counted)
    return seen


KINDS = pytest.mark.parametrize("kind", [Sampler, TorchSampler])


@KINDS
@pytest.mark.parametrize("width", [0, 7])
@pytest.mark.parametrize("batch", [1, 4])
def test_same_rows_ids_gradients_and_random_numbers(kind, width, batch, served):
    model = ready(kind, width)
    fused = fused_copy(model)
    assert sampling.name_of(fused) == f"sample_patches, positions drawn by {kind.draws}"
    served.clear()
    want = outcome(model, maps(batch), 30)  # of 72, 42 and 20 positions
    check_same(outcome(fused, maps(batch), 30), want)
    assert len(served) == 3
    other = maps(batch, seed=1)
    check_same(outcome(fused, other, 30, want[1]), outcome(model, other, 30, want[1]))
    assert len(served) == 6
    given = [torch.tensor([0, 3, 3, 19])] * 3  # its gradients add up
    check_same(outcome(fused, tuple(other), ids=given), outcome(model, tuple(other), ids=given))
    assert len(served) == 9
    assert (outcome(fused, other, 5, want[1])[1][0] is want[1][0]) is not kind.copies


@KINDS
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_fused_dtypes(kind, dtype, tolerance, served):
    model = ready(kind, dtype=dtype)
    fused = fused_copy(model)
    served.clear()
    check_same(outcome(fused, maps(3, dtype), 9), outcome(model, maps(3, dtype), 9), tolerance)
    assert len(served) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_in_channels_last_gain_nothing_on_the_cpu_and_are_left_to_it(dtype, served):
    fused = fused_copy(ready(Sampler, dtype=dtype))
    served.clear()
    rows, _ = fused([*maps(dtype=dtype)[:2], maps(dtype=dtype, channels_last=True)[2]], 9)
    assert not served and [vars(x)["_fused_images"] for x in rows] == [2, 2, 2]


@KINDS
def test_trying_it_leaves_everything_as_it_was(kind):
    model, seen = ready(kind), []
    model.unit.register_forward_hook(lambda m, i, o: seen.append(o))
    model.mlp_0.register_forward_pre_hook(lambda m, i: seen.append(i))
    before = generators()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    attributes = {name: value for name, value in vars(model).items()}
    children = dict(model.named_modules())
    assert sampling.take(model) == ""
    assert generators() == before and not seen and isinstance(model, kind)
    assert dict(model.named_modules()) == children
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    sampling.give_back(model)
    assert type(model) is kind and vars(model) == attributes and not sampling.name_of(model)


@KINDS
def test_mlps_are_made_at_the_first_call_as_ever(kind, served):
    torch.manual_seed(0)
    model = kind(7)
    fused = fused_copy(model)
    assert not list(fused.parameters()) and not fused.made
    served.clear()
    first = outcome(fused, maps(), 9)
    assert not served and fused.made and list(fused.state_dict())[:1] == ["mlp_0.0.weight"]
    check_same(first, outcome(model, maps(), 9))  # with the same numbers in the MLPs
    check_same(outcome(fused, maps(), 9), outcome(model, maps(), 9))
    assert len(served) == 3
    model.load_state_dict(fused.state_dict())


CHANGES = {
    "attribute": lambda m: setattr(m, "devices", [0]),
    "attribute in place": lambda m: m.devices.append(0),
    "new attribute": lambda m: setattr(m, "extra", 1),
    "method": lambda m: setattr(m, "positions", lambda count, wanted, x: torch.arange(wanted)),
    "forward": lambda m: setattr(m, "forward", lambda *given: TorchSampler.forward(m, *given)),
}
CALLS = {
    "no patches": lambda m: m(maps(), 0),
    "count of numpy": lambda m: m(maps(), np.int64(9)),
    "ids of numpy": lambda m: m(maps(), 9, [np.arange(4)] * 3),
    "ids as lists": lambda m: m(maps(), 9, [[1, 2]] * 3),
    "negative ids": lambda m: m(maps(), 9, [torch.tensor([-1, 0])] * 3),
    "inference": lambda m: torch.inference_mode()(m)(maps(), 9),
    "vmap": lambda m: torch.vmap(lambda x: m([x], 9)[0][0], randomness="same")(maps()[0][None]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_module_computes_by_its_own_forward(change, served):
    model = ready(TorchSampler)
    fused = fused_copy(model)
    served.clear()
    change(model), change(fused)
    check_same(outcome(fused, maps(), 9), outcome(model, maps(), 9))
    assert not served


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_other_calls_are_its_own_forwards(call, served):
    model = ready(Sampler)
    fused = fused_copy(model)
    served.clear()
    found = []
    for m in (model, fused):
        np.random.seed(0)
        found.append(call(m))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    assert not served


def test_calls_that_fail_fail_as_they_did():
    fused = fused_copy(ready(Sampler))
    for given in ((), (maps(), 9, None, 1), (maps(), 9, [torch.tensor([99])] * 3), ([*maps(), maps()[0]], 9)):
        with pytest.raises((TypeError, IndexError, AttributeError)) as ours:
            fused(*given)
        with pytest.raises(ours.type):
            Sampler.forward(fused, *given)
    with pytest.raises(TypeError):
        fused(maps(), 9, maps=maps())


@KINDS
def test_children_can_be_replaced_and_watched(kind, served):
    """With dropout, whose draws stand between those of the positions."""
    model = ready(kind)
    fused, seen = fused_copy(model), []
    served.clear()
    for m in (model, fused):
        m.unit = nn.Tanh()
        m.mlp_1 = nn.Sequential(m.mlp_1, nn.Dropout(0.5))
        m.mlp_2.register_forward_hook(lambda m, i, o: seen.append(o))
    check_same(outcome(fused, maps(), 9), outcome(model, maps(), 9))
    assert len(served) == 3 and torch.equal(*seen)


class Twice(TorchSampler):
    def positions(self, count, wanted, x):
        torch.randperm(count)
        return super().positions(count, wanted, x)


class Sorted(TorchSampler):
    def positions(self, count, wanted, x):
        return super().positions(count, wanted, x).sort().values


class WithPythons(Sampler):
    def positions(self, count, wanted, x):
        random.random()
        return super().positions(count, wanted, x)


class Detached(TorchSampler):
    def forward(self, maps, wanted=64, ids=None):
        return super().forward([x.detach() for x in maps[:1]] + list(maps[1:]), wanted, ids)


class Doubled(TorchSampler):
    def forward(self, maps, wanted=64, ids=None):
        rows, ids = super().forward(maps, wanted, ids)
        return [2 * x for x in rows], ids


class Tuples(TorchSampler):
    def forward(self, maps, wanted=64, ids=None):
        return tuple(map(tuple, super().forward(maps, wanted, ids)))


class Counting(TorchSampler):
    calls = 0

    def forward(self, maps, wanted=64, ids=None):
        self.calls += 1
        return super().forward(maps, wanted, ids)


class Failing(TorchSampler):
    def forward(self, maps, wanted=64, ids=None):
        raise RuntimeError("not here")


class TrainedOnly(TorchSampler):
    def forward(self, maps, wanted=64, ids=None):
        rows, ids = super().forward(maps, wanted, ids)
        return [x if self.training else x.neg() for x in rows], ids


@pytest.mark.parametrize("width", [0, 7])
@pytest.mark.parametrize("kind", [Twice, Sorted, WithPythons, Doubled, Tuples, Counting, TrainedOnly, Detached])
def test_what_does_something_else_is_left(kind, width):
    model = kind(width)
    assert sampling.looks_like(model)
    want = "attributes change" if kind is Counting else "something else|not a list of tensors"
    why = sampling.take(model)
    assert why and type(model) is kind and not sampling.name_of(model)
    assert any(text in why for text in want.split("|")), why


def test_what_cannot_be_tried_is_left_with_the_reason():
    assert "RuntimeError: not here" in sampling.take(Failing())
    meta = ready(Sampler).to("meta")
    assert "meta" in sampling.take(meta)
    model = TorchSampler()
    model.forward = model.forward
    assert "its forward was replaced on the object" in sampling.take(model)


def test_a_module_that_is_fused_again():
    fused = fused_copy(ready(TorchSampler))
    fused.devices = [1]
    assert sampling.take(fused) == "" and sampling.name_of(fused)
    fused.unit.forward = lambda x: x.detach()
    assert sampling.take(fused) and not sampling.name_of(fused)


def test_other_modules_do_not_look_like_samplers():
    class Two(nn.Module):
        def forward(self, maps, ids=None):
            return maps

    class Four(Sampler):
        def forward(self, maps, wanted=64, ids=None, more=None):
            return maps

    class WithWeight(Sampler):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    two_children = Sampler()
    two_children.more = nn.ReLU()
    trained = Sampler()
    trained.unit = nn.Linear(3, 3)
    gap = ready(Sampler)
    del gap.mlp_1
    others = [Two(), Four(), WithWeight(), two_children, trained, gap, nn.Sequential(nn.ReLU()), nn.ReLU()]
    others.append(torch.jit.script(nn.Sequential(nn.ReLU())))
    assert not any(sampling.looks_like(m) for m in others)


def test_copies_and_pickles_stay_fused(served):
    model = ready(Sampler)
    fused = fused_copy(model)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert sampling.name_of(again)
        served.clear()
        check_same(outcome(again, maps(), 9), outcome(model, maps(), 9))
        assert len(served) == 3


def test_it_is_tried_anew_on_another_kind_of_device(served):
    """A generator belongs to a device: what was seen elsewhere says nothing."""
    fused = fused_copy(ready(TorchSampler))
    vars(fused)["_fused_how"] = {"cuda": sampling._How("numpy", False, "mlp_", "unit")}
    before = generators()
    served.clear()
    fused(maps(), 9, [torch.arange(4)] * 3)
    assert generators() == before
    assert fused._fused_how["cpu"] == sampling._How("torch", True, "mlp_", "unit") and len(served) > 3


@KINDS
def test_its_rows_tell_the_loss_how_many_images_there_are(kind):
    options = SimpleNamespace(nce_T=0.07, batch_size=4, num_patches=12, nce_includes_all_negatives_from_minibatch=False)
    loss = kernels.PatchNCELoss(options)
    model = kind(7)
    fused = fused_copy(model)
    for batch in (4, 3, 1):
        for wanted in (12, 9):
            keys, ids = fused(maps(batch), wanted)
            queries, _ = fused(maps(batch, seed=1), wanted, ids)
            for q, k, found in zip(queries, keys, loss(queries, keys), strict=True):
                want = kernels.patch_nce_loss(*(x.view(batch, wanted, -1) for x in (q, k)), reduction="none")
                assert torch.equal(found, want.flatten())
    model(maps(), 2)
    with pytest.raises(ValueError, match="36 rows, which may be 3 x 12 or 4 x 9"):
        loss(model(maps(3), 12)[0], model(maps(3), 12)[0])


def test_compiled_it_is_its_own_forward():
    model = ready(TorchSampler)
    fused = torch.compile(fused_copy(model), backend="eager", fullgraph=True)
    check_same(outcome(fused, maps(), 9, [torch.arange(4)] * 3), outcome(model, maps(), 9, [torch.arange(4)] * 3))


@KINDS
def test_replicas_of_data_parallel_stay_fused(kind, served):
    model = ready(kind)
    fused = fused_copy(model)
    replica = fused._replicate_for_data_parallel()
    replica._former_parameters = {}
    served.clear()
    rows, _ = replica(maps(), 9)
    assert len(served) == 3 and vars(rows[0])["_fused_images"] == 2
