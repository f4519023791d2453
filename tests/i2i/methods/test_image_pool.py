"""The pool of translated images: CycleGAN's rule, image by image; nothing that a resumed run would do differently."""

import pytest
import torch

from i2i.methods.image_pool import ImagePool
from kernels._layout import is_channels_last


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(*values: int) -> torch.Tensor:
    """Images that say which they are."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 4, 5).clone()


def numbers(images: torch.Tensor) -> list[int]:
    return [int(v) for v in images[:, 0, 0, 0]]


def answered(pool: ImagePool, images: torch.Tensor) -> torch.Tensor:
    pool.draw(len(images))
    return pool.exchange(images)


def test_first_images_come_back_until_it_is_full():
    pool = ImagePool(4, rng())
    assert numbers(answered(pool, numbered(1, 2, 3))) == [1, 2, 3]
    assert numbers(answered(pool, numbered(4))) == [4]
    assert numbers(torch.cat(pool.state())) == [1, 2, 3, 4]


def test_then_half_of_them_are_exchanged():
    """Every answer and the contents follow from the two draws; over 2000 images half are swapped, places evenly."""
    pool, draws, kept, swapped = ImagePool(4, rng()), rng(), [0, 1, 2, 3], [0] * 4
    answered(pool, numbered(*kept))
    for start in range(4, 2004, 2):  # two at a time: image by image all the same
        wanted = []
        for number in (start, start + 1):
            wanted.append(number)
            if torch.rand((), generator=draws) > 0.5:
                place = int(torch.randint(4, (), generator=draws))
                wanted[-1], kept[place] = kept[place], number
                swapped[place] += 1
        assert numbers(answered(pool, numbered(start, start + 1))) == wanted
    assert numbers(torch.cat(pool.state())) == kept
    assert 900 < sum(swapped) < 1100 and min(swapped) > 200  # 4 standard deviations: 89 and 40


def test_size_0_passes_images_through_without_a_draw():
    generator = rng()
    images = numbered(1, 2).requires_grad_()
    answer = answered(ImagePool(0, generator), images)
    assert torch.equal(answer, images) and not answer.requires_grad
    assert torch.equal(generator.get_state(), rng().get_state())


def test_a_reloaded_pool_goes_on_exactly():
    generator = rng()
    pool = ImagePool(5, generator)
    for number in range(20):
        answered(pool, numbered(number))
    state, random = [image.clone() for image in pool.state()], generator.get_state()
    wanted = [numbers(answered(pool, numbered(number))) for number in range(20, 60)]
    generator = rng(1)
    generator.set_state(random)
    resumed = ImagePool(5, generator)
    resumed.load(state, torch.device("cpu"), torch.contiguous_format)
    assert [numbers(answered(resumed, numbered(number))) for number in range(20, 60)] == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_keep_layout_and_dtype_and_nothing_else_alive(dtype):
    pool = ImagePool(2, rng())
    for number in range(6):
        images = (numbered(number, number) * torch.ones(1, requires_grad=True)).to(dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        answer = answered(pool, images)
        assert is_channels_last(answer) and answer.dtype == dtype and not answer.requires_grad
    for image in pool.state():
        assert is_channels_last(image) and not image.requires_grad
        assert image.untyped_storage().nbytes() == image.numel() * image.element_size()


def test_what_happens_to_an_answer_does_not_reach_the_pool():
    pool = ImagePool(1, rng())
    answered(pool, numbered(7)).zero_()
    assert numbers(pool.state()[0]) == [7]
