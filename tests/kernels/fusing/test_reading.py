"""A block whose forward a trace does not hold is left as it is, with the reason."""

import random
import time
from random import random as chance

import numpy.random
import pytest
import torch
import torch.nn.functional as F
from support.block_cases import Parts, X
from support.fuse_cases import fused_copy
from torch import nn

FLAG = True
numpys = numpy.random.random_sample


class With(Parts):
    def forward(self, x):
        with torch.no_grad():
            y = self.norm1(x)
        return F.relu(y) + x


class Global(Parts):
    def forward(self, x):
        y = self.norm1(x)
        return F.relu(y) if FLAG else y


class Counting(Parts):
    def forward(self, x):
        self.calls += 1
        return F.relu(self.norm1(x))


class Collecting(Parts):
    def forward(self, x):
        y = self.norm1(x)
        self.seen.append(y)
        return F.relu(y)


class Chance(Parts):
    def forward(self, x):
        y = F.relu(self.norm1(x))
        return y if chance() < 0.5 else y * 2


class NumpysChance(Parts):
    def forward(self, x):
        return F.relu(self.norm1(x)) * numpys()


class Property(Parts):
    @property
    def flag(self):
        return FLAG

    def forward(self, x):
        y = self.norm1(x)
        return F.relu(y) if self.flag else y


class Drawn(Parts):
    def forward(self, x):
        y = F.relu(self.norm1(x))
        return y * float(torch.rand(()))


class Asking(Parts):
    def forward(self, x):
        return F.relu(self.norm1(x)) if isinstance(x, torch.Tensor) else x


class ByValue(Parts):
    def forward(self, x):
        y = F.relu(self.norm1(x))
        return y if x.shape[0] > 1 else -y


class ByGradient(Parts):
    def forward(self, x):
        y = F.relu(self.norm1(x))
        return y if torch.is_grad_enabled() else y * 2


class Listed(Parts):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([self.norm1, self.norm2])

    def forward(self, x):
        for norm in self.norms:
            x = F.relu(norm(x))
        return x


class Constant(Parts):
    def forward(self, x):
        return F.relu(self.norm1(x) * torch.tensor([2.0])) + F.relu(self.norm2(x))


class Printing(Parts):
    def forward(self, x):
        print(end="")
        return F.relu(self.norm1(x))


class Checkpointed(Parts):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.act, self.norm1(x), use_reentrant=False)


class Timed(Parts):
    def forward(self, x):
        return F.relu(self.norm1(x)) * (time.time() > 0)


class ReadingAChild(Parts):
    def forward(self, x):
        return F.leaky_relu(self.norm1(x), self.act.negative_slope)


LEFT = {
    Printing: "calls `print`",
    Checkpointed: "calls `checkpoint`",
    Timed: "uses the module `time`",
    ReadingAChild: "reads `self.act.negative_slope`",
    With: "a `with` or `try`",
    Global: "the global variable `FLAG`",
    Counting: "changes `self.calls`",
    Collecting: "`self.seen`, of type list",
    Chance: "draws random numbers",
    Drawn: "draws random numbers",
    NumpysChance: "the global variable `numpys`",
    Property: "the global variable `FLAG`",
    Asking: "what `isinstance` says",
    ByValue: "torch.fx cannot trace its forward",
    ByGradient: "whether gradients are recorded",
    Listed: "goes through `self.norms`",
}


@pytest.mark.parametrize("cls", LEFT, ids=lambda cls: cls.__name__)
def test_a_forward_that_no_trace_holds_is_left(cls):
    model = cls().double()
    states = random.getstate(), torch.random.get_rng_state()
    fused = fused_copy(model)
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])
    assert LEFT[cls] in dict(fused.fuse_report.left)[""] and type(fused) is cls
    assert vars(fused)["calls"] == 0 and not fused.seen
    for mode in (model, fused):
        random.seed(3), torch.manual_seed(3), numpy.random.seed(3)
        mode.result = mode(X)
    torch.testing.assert_close(fused.result, model.result)


def test_a_norm_does_not_change_places_with_what_writes_or_draws():
    class Between(Parts):
        def __init__(self, between):
            super().__init__()
            self.between = between
            self.noisy = nn.Sequential(nn.Dropout(0.5), nn.InstanceNorm2d(4))

        def forward(self, x):
            x = self.conv1(self.pad(x))
            y = self.norm1(x) if self.slope else self.noisy(x)
            x = self.between(x)
            return y + x

    for between in (nn.ReLU(inplace=True), nn.Sequential(nn.Identity(), nn.LeakyReLU(0.2, True))):
        model = Between(between).double()
        fused = fused_copy(model)
        assert not fused.fuse_report.merged
        with torch.no_grad():  # with gradients, torch refuses it
            torch.testing.assert_close(fused(X), model(X))
    model = Between(nn.Dropout(0.5)).double()
    model.slope = 0
    fused = fused_copy(model)
    assert not fused.fuse_report.merged
    for each in (model, fused):
        torch.manual_seed(5)
        vars(each)["result"] = each(X)
    torch.testing.assert_close(fused.result, model.result)
