"""From a configuration to the data of a run."""

import pytest

from i2i.config import Config
from i2i.data import open_training_data
from i2i.errors import UsageError


def test_training_data_from_a_configuration(root):
    config = Config(data=(str(root),), load_size=40, crop_size=32, input_nc=1, max_dataset_size=2, seed=3)
    data = open_training_data(config)
    assert len(data) == 2 and data.options.seed == 3 and data.item(0)[0].shape == (1, 32, 32)
    assert len(open_training_data(Config(crop_size=32))) == 50
    with pytest.raises(UsageError, match="input_nc 3, output_nc 3 and direction AtoB"):
        open_training_data(Config(crop_size=32, direction="BtoA"))
