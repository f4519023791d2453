"""OP-GAN: patches and pairs, and the losses of its siamese network against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.method_steps import changed, in_float64, record_gradients, state

from i2i.errors import UsageError
from i2i.inference import weights
from i2i.methods.opgan import OPGAN, OPGANConfig, cut, draw_pairs, pair_classes
from i2i.networks.opgan import SiameseNetwork

TINY = {"crop_size": 32, "ngf": 4, "ndf": 4, "nsf": 4, "generator": "resnet_4blocks", "n_layers_d": 2, "n_pairs": 8}


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(golden.image(name, (2, 3, 32, 32)).to(dtype) for name in ("x", "y"))


@torch.no_grad()
def test_maps_have_the_papers_sizes():
    net = SiameseNetwork(width=64)
    patch = torch.zeros(1, 3, 256 // 3, 256 // 3)
    content, domain = net.encode(patch)
    assert content.shape == domain.shape == (1, 512, 11, 11)
    first, second, logits = net(patch, patch)
    assert first.shape == second.shape == (1, 1, 85, 85) and logits.shape == (1, 3)


def test_patches_are_the_grid():
    x = golden.image("x", (2, 3, 32, 35))
    cells = cut(x)
    assert cells.shape == (2, 9, 3, 10, 11)
    assert torch.equal(cells[1, 5], x[1, :, 10:20, 22:33])  # second row, third column


@pytest.mark.parametrize("sampling", ["scenario", "uniform"])
def test_pairs_are_of_all_kinds_in_their_proportions(sampling):
    first, second = draw_pairs(40_000, sampling, torch.Generator().manual_seed(0))
    assert not torch.any(first == second) and torch.stack([first, second]).unique().tolist() == list(range(18))
    one_place = first % 9 == second % 9
    mixed = (first < 9) != (second < 9)
    found = [(~mixed & (first < 9)), (~mixed & (first >= 9)), (mixed & one_place), (mixed & ~one_place)]
    share = [float(kind.double().mean()) for kind in found]
    # 5 standard deviations of a share of 40,000 draws: 0.011
    wanted = [0.25] * 4 if sampling == "scenario" else [4 / 17, 4 / 17, 1 / 17, 8 / 17]
    assert share == pytest.approx(wanted, abs=0.011)


def test_classes_are_what_patches_look_like():
    pairs = torch.tensor([[0, 9, 0, 9], [1, 17, 9, 8]])
    assert pair_classes(pairs, "A").tolist() == [0, 1, 2, 2]
    assert pair_classes(pairs, "B").tolist() == [1, 0, 2, 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_on": "pixels", "normalize_attention": True, "pair_sampling": "uniform"},
        {"register_siamese": False, "lambda_s": 0.5},
    ],
)
def test_losses_and_gradients_are_those_of_the_formulas(options):
    """Gradients of the generators less those of CycleGAN, from the same weights, are those of S's losses."""
    models = [in_float64(OPGAN(OPGANConfig(**TINY, init_gain=0.2, **options))) for _ in range(2)]
    model, plain = models
    plain.backward_more = lambda *_: {}
    gradients, without = map(record_gradients, models)
    a, b = batch()
    row = model.step(a, b)
    plain.step(a, b)

    rng = torch.Generator().manual_seed(0)
    G_A, G_B, S = model.G_A, model.G_B, model.S
    contents, domains = [], []
    for side, source, fake in (("A", a, G_A(a)), ("B", b, G_B(b))):
        first, second = draw_pairs(16, model.config.pair_sampling, rng)
        content, domain = torch.zeros(2, dtype=torch.float64)
        for k in range(16):
            both = torch.cat([source[k // 8], fake[k // 8]])  # channels 0 to 2, 3 to 5
            patches = []
            for number in (int(first[k]), int(second[k])):
                channel, (top, left) = 3 * (number // 9), divmod(number % 9, 3)
                patch = both[channel : channel + 3, 10 * top : 10 * top + 10, 10 * left : 10 * left + 10]
                patches.append(patch[None])
            (c_a, d_a), (c_b, d_b) = map(S.encode, patches)
            maps = [F.interpolate(S.attend(c).sigmoid(), (10, 10), mode="bilinear") for c in (c_a, c_b)]
            if model.config.normalize_attention:
                maps = [each / each.mean() for each in maps]
            if model.config.attention_on == "pixels":
                maps = [each * patch for each, patch in zip(maps, patches, strict=True)]
            if first[k] % 9 == second[k] % 9:
                content = content + (maps[0] - maps[1]).square().mean() / 16
            like_b = [(int(number) >= 9) == (side == "A") for number in (first[k], second[k])]
            kind = 2 if like_b[0] != like_b[1] else int(like_b[0])
            domain = domain - S.classify(torch.cat([d_a, d_b], 1)).log_softmax(1)[0, kind] / 16
        torch.testing.assert_close(row[f"S_content_{side}"], content, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(row[f"S_domain_{side}"], domain.detach(), atol=1e-12, rtol=1e-10)
        contents.append(content)
        domains.append(domain)
    content, domain = (model.config.lambda_s * sum(each) / 2 for each in (contents, domains))
    assert float(content.detach()) > 0
    of_generators = [*G_A.parameters(), *G_B.parameters()]
    wanted = torch.autograd.grad(content + domain, of_generators, retain_graph=True, allow_unused=True)
    for found, less, want in zip(gradients["G"], without["G"], wanted, strict=True):
        if want is None:  # a bias in front of a norm
            assert found is None and less is None
        else:
            torch.testing.assert_close(found - less, want, atol=1e-10, rtol=1e-7)
    of_s = content + domain if model.config.register_siamese else domain
    wanted = torch.autograd.grad(of_s, list(S.parameters()), allow_unused=True)
    for name, found, want in zip(dict(S.named_parameters()), gradients["S"], wanted, strict=True):
        if want is None:
            assert found is None, name
        else:
            torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_updates_all_networks(precision):
    model = OPGAN(OPGANConfig(**TINY, precision=precision))
    before = state(model)
    for _ in range(8 if precision == "float16" else 1):  # its first scales overflow, and those steps are left out
        row = model.step(*batch(torch.float32))
    assert changed(model, before) == {"G_A", "G_B", "D_A", "D_B", "S"}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in row.values())
    assert row["S_variance_A"] > 0


def test_configurations_that_make_no_sense_are_refused():
    for options, message in (
        ({"pair_sampling": "random"}, "pair_sampling must be one of scenario, uniform, got random"),
        ({"attention_on": "both"}, "attention_on must be one of maps, pixels, got both"),
        ({"output_nc": 1}, "output_nc must be as input_nc"),
    ):
        with pytest.raises(UsageError, match=message):
            OPGANConfig(**options)


def test_weights_are_recognised(tmp_path):
    net = SiameseNetwork(width=4)
    weights.save_published(tmp_path, "latest", {"S": net})
    again = weights.load(tmp_path / "latest_net_S.pth")
    assert again.recognised == "Siamese network, width 4, 3 channels (OP-GAN)"
    torch.testing.assert_close(again.state_dict(), net.state_dict(), atol=0, rtol=0)
