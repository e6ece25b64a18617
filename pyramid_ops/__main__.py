"""`pyramid-ops`: tokens selected or merged on a picture; proof of equal bits; what a model costs with fewer tokens."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__, cost, verify
from . import schedules as by_layer
from .demo.usage import UsageError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    main = Parser(prog="pyramid-ops", description="Visual token reduction.")
    main.add_argument("--version", action="version", version=f"pyramid-ops {__version__}")
    commands = main.add_subparsers(dest="command", required=True)

    def command(name: str, purpose: str, example: str) -> Parser:
        raw = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=purpose, epilog=f"example:\n  {example}", formatter_class=raw)

    def drawing(name: str, purpose: str, example: str, out: str) -> Parser:
        drawn = command(name, purpose, example)
        drawn.add_argument("image", nargs="?", metavar="IMAGE", help="default: the photo that scikit-image ships")
        drawn.add_argument(
            "--patch-size",
            type=int,
            help="side of a patch in pixels (default: 16, less for small pictures; large ones are made smaller)",
        )
        drawn.add_argument("--out", default=out, help="the figure (default: %(default)s)")
        return drawn

    select = drawing(
        "select",
        "keep the most salient patches of a picture's pyramid",
        "pyramid-ops select photo.jpg --patch-size 32 --tokens 500 --out kept.png",
        "selection.png",
    )
    select.add_argument("--tokens", type=int, help="patches to keep (default: a fifth of all)")
    select.add_argument("--levels", type=int, help="levels of the pyramid (default: 4, fewer for small pictures)")
    select.add_argument(
        "--saliency",
        choices=("detail", "variance", "norm"),
        default="detail",
        help="what counts of a patch: the norm of what its level adds to the next coarser one, or the variance or norm "
        "of its pixels (default: %(default)s)",
    )
    merge = drawing(
        "merge",
        "merge similar patches of a picture, as ToMe does",
        "pyramid-ops merge photo.jpg --patch-size 32 --keep 0.5 0.1 --out merged.png",
        "merging.png",
    )
    merge.add_argument(
        "--keep",
        type=float,
        nargs="+",
        default=[0.5, 0.25, 0.1],
        help="shares of patches to keep (default: 0.5 0.25 0.1)",
    )
    methods = drawing(
        "methods",
        "what each published method keeps of a picture, side by side",
        "pyramid-ops methods photo.jpg --tokens 64 --at 0.2 0.43",
        "methods.png",
    )
    methods.add_argument("--tokens", type=int, default=64, help="patches to keep (default: %(default)s)")
    methods.add_argument(
        "--at",
        type=float,
        nargs=2,
        default=[0.5, 0.5],
        metavar=("DOWN", "ACROSS"),
        help="where the patches are that stand for an instruction's words, from 0 to 1 (default: the middle)",
    )
    command(
        "verify",
        "check that this machine computes the same bits as every other",
        "TRITON_INTERPRET=1 pyramid-ops verify  # the kernels too, where there is no GPU",
    )
    costs = command(
        "cost",
        "tokens by layer, operations and cache of a model with fewer image tokens",
        "pyramid-ops cost llava-1.5-7b --method pyramiddrop",
    )
    _cost_arguments(costs)
    return main


def _cost_arguments(costs: Parser) -> None:
    costs.add_argument("model", metavar="MODEL", help=f"{', '.join(cost.MODELS)}; or {cost.NUMBERS}")
    which = costs.add_mutually_exclusive_group()
    which.add_argument(
        "--method",
        default="none",
        choices=by_layer.METHODS,
        help="before: any that leaves --keep tokens before the language model; falling: 100, 80, 60, 40 %% of all in "
        "four equal stages; vscan: --keep before, half of them from layer 16 on; others by name (default: %(default)s)",
    )
    which.add_argument("--all", action="store_true", help="every method")
    costs.add_argument(
        "--budget", type=int, help="image tokens a layer reads on average, at most (default: authors' numbers)"
    )
    costs.add_argument(
        "--image", type=int, help="side of the image in pixels, for encoders of any size (default: 336, or the model's)"
    )
    costs.add_argument("--text", type=int, default=64, help="tokens of text (default: %(default)s)")
    costs.add_argument("--keep", type=int, help="image tokens that before and vscan leave (default: a ninth)")
    costs.add_argument("--tokens", type=int, help="image tokens in all, of several images (default: of one)")


def main(argv: Sequence[str] | None = None) -> int:
    options = vars(parser().parse_args(argv))
    command = options.pop("command")
    if command == "verify":
        try:
            bar = {"progress": importlib.import_module(".demo.console", __package__).progress}
        except ModuleNotFoundError:  # a bar is all that the extra adds
            bar = {}
        return verify.main(**bar)
    if command == "cost":
        return _cost(**options)
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend may be set and missing here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode
    try:
        importlib.import_module(f".demo.{command}", __package__).run(**options)
        return 0
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        message = f"needs {missing}: install the extra with pip install 'pyramid_ops[demo]'"
    except UsageError as error:
        message = str(error)
    print(f"pyramid-ops: error: {message}", file=sys.stderr)
    return 2


def _cost(model: str, method: str, all: bool, **options: int) -> int:
    try:
        print(cost.report(model, methods=[*by_layer.METHODS] if all else [method], **options))
        return 0
    except (TypeError, ValueError) as error:
        print(f"pyramid-ops: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
