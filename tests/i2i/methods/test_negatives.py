"""Negatives from past images: what the queue holds, what the moving averages are, and that a run resumes exactly."""

import copy
import io

import pytest
import torch

from i2i.methods import CUT
from i2i.methods.negatives import Queue, gathered

TINY = {
    "crop_size": 32,
    "ngf": 4,
    "ndf": 4,
    "generator": "resnet_4blocks",
    "num_patches": 8,
    "negatives": "external",
    "queue_size": 20,
}


def images(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_queue_holds_the_newest_rows(batch):
    queue = Queue(2, 7, 1, torch.Generator(), torch.device("cpu"))
    for start in range(0, 40, 2 * batch):
        rows = torch.arange(start, start + 2 * batch, dtype=torch.float32).view(batch, 2, 1)
        queue.push(gathered([rows, -rows]), queue.claim(2 * batch))
        newest = start + 2 * batch - 1
        held = queue.rows[0].flatten().sort().values
        if newest >= 6:
            assert torch.equal(held, torch.arange(newest - 6, newest + 1.0))
            assert torch.equal(queue.rows[1], -queue.rows[0])
            assert queue.rows[0, queue.place] == newest - 6  # the next to go is the oldest


def test_keys_come_from_moving_averages():
    model = CUT(CUT.Config(**TINY))
    model.step(*images(0))
    external = model.external
    with torch.no_grad():  # make the averages and what they follow differ by more than a step does
        for p in (*external.encoder.parameters(), *external.projection.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.01)
    before = [copy.deepcopy(net) for net in (external.encoder, external.projection)]
    seen = {}
    loss = model.nce_loss
    model.nce_loss = lambda rows, ids, translated, bank: (
        seen.setdefault(len(seen), (rows, ids, bank.clone())) and loss(rows, ids, translated, bank)
    )
    places = [queue.place for queue in external.queues]
    now = [copy.deepcopy(net) for net in (model.G, model.F)]
    model.step(*images(1))
    for old, net, average in zip(before, now, (external.encoder, external.projection), strict=True):
        for a, b, found in zip(old.parameters(), net.parameters(), average.parameters(), strict=True):
            torch.testing.assert_close(found, 0.999 * a + 0.001 * b, rtol=1e-5, atol=1e-7)
    for source, image in enumerate(images(1)):
        rows, ids, bank = seen[source]
        with torch.no_grad():
            maps = external.encoder(image, model.config.nce_layers, encode_only=True)
            wanted = external.projection.project([x.flatten(2)[:, :, i].transpose(1, 2) for x, i in zip(maps, ids)])
        for layer, (found, row) in enumerate(zip(rows, wanted, strict=True)):
            torch.testing.assert_close(found, row, rtol=1e-4, atol=1e-6 * float(row.abs().max()))
            # they join the queue, but were no negatives of their own loss
            at = (places[source] + torch.arange(8)) % 20
            assert torch.equal(external.queues[source].rows[layer, at], found[0])
            assert not torch.equal(bank[layer, at], found[0])


def test_images_of_both_domains_have_queues_of_their_own():
    assert len(CUT(CUT.Config(**TINY)).external.queues) == 2
    assert len(CUT(CUT.Config(**TINY, nce_idt=False)).external.queues) == 1


def test_resumes_exactly():
    first = CUT(CUT.Config(**TINY))
    first.step(*images(0))
    file = io.BytesIO()  # as a checkpoint does it: plain values and tensors only
    torch.save([first.extra_state(), *(part.state_dict() for part in parts(first))], file)
    random = first.rngs["step"].get_state()
    wanted = first.step(*images(1))

    second = CUT(CUT.Config(**TINY, seed=1))
    file.seek(0)
    state, *rest = torch.load(file, weights_only=True)
    second.load_extra_state(state)
    for part, saved in zip(parts(second), rest, strict=True):
        part.load_state_dict(saved)
    second.rngs["step"].set_state(random)
    found = second.step(*images(1))
    assert all(torch.equal(found[name], loss) for name, loss in wanted.items())
    for a, b in zip(first.external.queues, second.external.queues, strict=True):
        assert torch.equal(a.rows, b.rows) and a.place == b.place
    assert CUT(CUT.Config(**TINY | {"negatives": "image"})).extra_state() == {}


def parts(model: CUT) -> list:
    return [*model.networks.values(), *model.optimizers.values()]
