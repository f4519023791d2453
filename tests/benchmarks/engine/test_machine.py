"""Where figures come from."""

import torch

from benchmarks.engine import machine


def test_machine_slug_is_a_folder_name():
    name = machine.slug(torch.device("cpu"))
    assert name and name == name.lower() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
