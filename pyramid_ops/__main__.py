"""`pyramid-ops`: tokens selected or merged on a picture; proof that this machine computes the same bits."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import verify
from .demo.images import UsageError
from .demo.merge import run_merge
from .demo.select import run_select


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="pyramid-ops", description="Visual token reduction.")
    commands = parser.add_subparsers(dest="command", required=True)
    select = commands.add_parser("select", help="keep the most salient patches of a picture's pyramid")
    select.add_argument("image", nargs="?", metavar="IMAGE", help="default: the photo that scikit-image ships")
    select.add_argument("--tokens", type=int, default=273, help="patches to keep (default: %(default)s)")
    select.add_argument("--patch-size", type=int, default=16, help="side of a patch in pixels (default: %(default)s)")
    select.add_argument("--levels", type=int, default=4, help="levels of the pyramid (default: %(default)s)")
    select.add_argument("--saliency", choices=("detail", "variance", "norm"), default="detail")
    select.add_argument("--out", default="selection.png", help="the figure (default: %(default)s)")
    merge = commands.add_parser("merge", help="merge similar patches of a picture, as ToMe does")
    merge.add_argument("image", nargs="?", metavar="IMAGE", help="default: the photo that scikit-image ships")
    merge.add_argument("--patch-size", type=int, default=16, help="side of a patch in pixels (default: %(default)s)")
    merge.add_argument(
        "--keep", type=float, nargs="+", default=[0.5, 0.25, 0.1], help="shares of patches to keep (default: .5 .25 .1)"
    )
    merge.add_argument("--out", default="merging.png", help="the figure (default: %(default)s)")
    commands.add_parser("verify", help="check that this machine computes the same bits as every other")
    arguments = parser.parse_args(argv)
    if arguments.command == "verify":
        return verify.main()
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend may be set and missing here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode
    try:
        for module in ("matplotlib", "PIL", "rich", "skimage"):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UsageError(f"needs {module}: install the extra with pip install 'pyramid_ops[demo]'") from error
        {"select": run_select, "merge": run_merge}[arguments.command](arguments)
    except UsageError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0
