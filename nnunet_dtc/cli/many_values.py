"""Options that take several values after one flag, as nnU-Net's ``-f 0 1 2``."""

import typer
from typer.core import TyperCommand

MANY = ("-tr", "-f")


class ManyValues(TyperCommand):
    """A command that accepts ``-tr A B C`` instead of ``-tr A -tr B -tr C``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option, first = None, False
        for arg in args:
            if arg.startswith("-"):
                option, first = (arg, True) if arg in MANY else (None, False)
            elif option is not None:
                if not first:
                    spread.append(option)
                first = False
            spread.append(arg)
        return super().parse_args(ctx, spread)
