"""nnU-Net with the networks of its plans accelerated.

Copy this file into nnunetv2/training/nnUNetTrainer/ and train with `nnUNetv2_train ... -tr nnUNetTrainerAccelerated`.
Networks keep their state-dict keys: checkpoints of nnUNetTrainer load here and the other way round, and
nnUNetv2_predict, which builds its network by the trainer's class, is accelerated too. nnU-Net's own autocast (on a GPU)
stays as it is. What it gains: 1.13x of a step of PlainConvUNet and 1.09x of ResidualEncoderUNet at 32 x 32 x 32,
float32, on two cores with AVX2, where convolutions are most of it (python -m benchmarks.foreign --packages).
"""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import kernels


class nnUNetTrainerAccelerated(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*args, **options):
        return kernels.accelerate(nnUNetTrainer.build_network_architecture(*args, **options))
