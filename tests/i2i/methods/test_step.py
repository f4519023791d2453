"""One step of the CUT family: memory formats, precision, and the order of work."""

import pytest
import torch
from support.method_steps import gradient
from support.step_profiler import Profiler

from i2i.errors import UsageError
from i2i.methods import CUT, METHODS

# No map has as many rows as channels: then a permutation would look like a copy.
TINY = {"crop_size": 48, "ngf": 16, "ndf": 16, "generator": "resnet_4blocks", "num_patches": 16}


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(1, 3, 48, 48, generator=generator) * 2 - 1 for _ in range(2))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cut", {}),
        ("cut", {"precision": "bfloat16"}),
        ("cut", {"precision": "bfloat16", "published_order": True}),
        ("fastcut", {"seed": 3}),  # whose first step mirrors
        ("cut", {"negatives": "external", "queue_size": 32, "dropout": True}),
    ],
)
def test_no_layout_copy_in_a_step(method, options, form):
    """No map or weight leaves the memory format of the run between the images and the updated parameters."""
    model = METHODS[method](METHODS[method].Config(**TINY | options))
    given = [x.contiguous(memory_format=form) for x in images()]
    with Profiler() as profiler:
        model.step(*given)
    assert profiler.operators > 500 and profiler.maps > 200
    assert profiler.reordered == [] and profiler.mostly(form)
    with Profiler() as profiler:  # what such a copy looks like
        other = torch.channels_last if form == torch.contiguous_format else torch.contiguous_format
        given[0].contiguous(memory_format=other)
    assert profiler.reordered == [("clone", (1, 3, 48, 48))] and not profiler.mostly(form)


@pytest.mark.parametrize("nce_idt", [True, False])
def test_keeping_the_keys_changes_nothing(nce_idt):
    """The published order encodes the sources a second time: same draws, same losses, same update."""
    models = [CUT(CUT.Config(**TINY, nce_idt=nce_idt, published_order=published)) for published in (False, True)]
    for step in range(2):
        ours, published = (model.step(*images(step)) for model in models)
        for name in published:
            torch.testing.assert_close(ours[name], published[name], rtol=1e-4, atol=1e-6)
    states = [model.rngs["step"].get_state() for model in models]
    assert torch.equal(*states)


def test_bfloat16_keeps_weights_and_losses_in_float32():
    model = CUT(CUT.Config(**TINY, precision="bfloat16"))
    exact = CUT(CUT.Config(**TINY)).step(*images())
    losses = model.step(*images())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(exact[name]), rel=0.05, abs=0.01), name
    for net in model.networks.values():
        assert all(p.dtype == gradient(p).dtype == torch.float32 for p in net.parameters())
    assert model.translate(images()[0]).dtype == torch.float32


def test_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="precision must be one of float32, bfloat16, float16, got half"):
        CUT.Config(precision="half")
