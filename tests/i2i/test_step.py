"""One step of CUT: memory formats, precision, and the order of work."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from i2i.config import Config
from i2i.cut import CUT
from i2i.errors import UsageError
from kernels._layout import is_channels_last

# No map has as many rows as channels: then a permutation would look like a copy.
TINY = {"crop_size": 48, "ngf": 16, "ndf": 16, "n_blocks": 2, "num_patches": 16}


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.rand(1, 3, 48, 48, generator=generator) * 2 - 1).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )


class Profiler(TorchDispatchMode):
    """Every operator that runs, forward and backward, with the memory format of the maps it takes and makes."""

    def __init__(self):
        super().__init__()
        self.operators, self.maps, self.reordered = 0, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        self.operators += 1
        given = [t for t in args if self.is_map(t)]
        made = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if self.is_map(t)]
        self.maps += len(made)
        for t in made:
            source = given[-1] if name == "copy_" else given[0] if given else None
            if source is not None and source.shape == t.shape and is_channels_last(source) != is_channels_last(t):
                self.reordered.append((name, tuple(t.shape)))
        return result

    @staticmethod
    def is_map(t: object) -> bool:
        return isinstance(t, torch.Tensor) and t.dim() == 4 and t.shape[1] > 1 and t.shape[2] * t.shape[3] > 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("published_order", [False, True])
def test_no_layout_copy_in_a_step(precision, published_order):
    """No map or weight leaves channels last between the images and the updated parameters."""
    model = CUT(Config(**TINY, precision=precision, published_order=published_order))
    given = images()
    with Profiler() as profiler:
        model.step(*given)
    assert profiler.operators > 500 and profiler.maps > 200
    assert profiler.reordered == []
    with Profiler() as profiler:  # what such a copy looks like
        given[0].contiguous()
    assert profiler.reordered == [("clone", (1, 3, 48, 48))]


@pytest.mark.parametrize("nce_idt", [True, False])
def test_keeping_the_keys_changes_nothing(nce_idt):
    """The published order encodes the sources a second time: same draws, same losses, same update."""
    models = [CUT(Config(**TINY, nce_idt=nce_idt, published_order=published)) for published in (False, True)]
    for step in range(2):
        ours, published = (model.step(*images(step)) for model in models)
        for name in published:
            torch.testing.assert_close(ours[name], published[name], rtol=1e-4, atol=1e-6)
    states = [model.patch_rng.get_state() for model in models]
    assert torch.equal(*states)


def test_bfloat16_keeps_weights_and_losses_in_float32():
    model = CUT(Config(**TINY, precision="bfloat16"))
    exact = CUT(Config(**TINY)).step(*images())
    losses = model.step(*images())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(exact[name]), rel=0.05, abs=0.01), name
    for net in model.networks.values():
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.parameters())
    assert model.translate(images()[0]).dtype == torch.float32


def test_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="precision must be one of float32, bfloat16, got half"):
        Config(precision="half")
