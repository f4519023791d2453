"""The commands but `train`, their arguments, and what mistakes in them are answered with."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from i2i.cli import evaluate, export, translate


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
            close = [m for word in words for m in difflib.get_close_matches(word, self.known_options(), n=1)]
            if close:
                message += f" (did you mean {' '.join(close)}?)"
        if "invalid choice: 'test'" in message:
            message += " (what test.py did, translate does)"
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def known_options(self) -> list[str]:
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += [name for sub in action.choices.values() for name in sub.known_options()]
        return names


def build_parser() -> Parser:
    parser = Parser(prog="i2i", description="Image-to-image translation: train it, use it.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    commands.add_parser("train", help="train a published system; see i2i train --help")
    for name, module in (("translate", translate), ("export", export), ("evaluate", evaluate)):
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    commands.add_parser("list", help="name the systems that can be trained").set_defaults(run=list_methods)
    return parser


def list_methods(_: argparse.Namespace) -> int:
    from i2i.methods import METHODS  # which no other command here needs

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:{width}}  {method.title}")
    return 0
