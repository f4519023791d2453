"""Contestants of whole-step tables without their processes."""

from __future__ import annotations

import importlib
import json

from benchmarks.systems.child import Child


class Here:
    """A contestant in this process, in the place of `turns.Process`; test_steps.py has processes of their own."""

    def __init__(self, contestant, device, log):
        module = importlib.import_module(contestant.module)
        self.child = Child(*module.contestant(str(device), **json.loads(json.dumps(contestant.arguments))))

    def send(self, *command):
        self.command = command

    def receive(self, until):
        command, *given = self.command
        answers = self.child if hasattr(self.child, command) else self.child.model
        return json.loads(json.dumps(getattr(answers, command)(*given)))

    def close(self):
        pass
