"""The reference is a specification: what it may call, and that each operation rounds once."""

import ast
import pathlib
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyramid_ops._op import OPS
from pyramid_ops.verify.cases import DESCRIPTIONS

REFERENCE = sorted((pathlib.Path(__file__).parents[2] / "reference").glob("*.py"))

# What the specification may call: shape and memory, integers and comparisons, and elementwise arithmetic that rounds
# once. No float reduction, nothing that fuses a multiply and an add.
ALLOWED_CALLS = {
    *("append", "pop", "bit_length", "element_size", "index", "insert", "is_contiguous", "extend", "numel"),
    *(
        "clone",
        "contiguous",
        "copy_",
        "empty",
        "empty_like",
        "expand",
        "fill_",
        "flatten",
        "full",
        "new_empty",
        "new_ones",
        "ones_like",
        "new_zeros",
    ),
    *("arange", "cat", "split", "stack", "tensor", "to", "unbind", "unflatten", "view", "zeros_like", "nonzero"),
    *("index_select", "index_copy_", "diagonal"),
    *(
        "add",
        "mul",
        "div",
        "add_",
        "mul_",
        "sub",
        "sub_",
        "clamp_",
        "floor_",
        "round_",
        "nan_to_num_",
        "bitwise_left_shift_",
        "where",
        "abs",
        "double",
        "sqrt",
        "float",
    ),
    # Of integers, see test_reference_rounds_one_operation_at_a_time.
    *(
        "amax",
        "amin",
        "maximum",
        "minimum",
        "argmax",
        "argsort",
        "bincount",
        "clamp",
        "cumsum",
        "max",
        "repeat_interleave",
        "scatter_reduce_",
        "sort",
        "sum",
        "topk",
        "all",
    ),
    "mm",  # see test_reference_multiplies_matrices_of_grid_values_only
    *("floor", "full_like", "inference_mode", "is_autocast_enabled", "ones", "pairwise", "tolist", "zeros"),
    "_replace",  # of a NamedTuple
    *("exponentials", "of", "probabilities", "take"),  # methods of the reference's own classes
}
ALLOWED_BUILTINS = {
    "abs",
    "all",
    "bool",
    "divmod",
    "enumerate",
    "int",
    "len",
    "map",
    "max",
    "min",
    "range",
    "reversed",
    "slice",
    "sorted",
    "sum",
    "tuple",
    "zip",
}


def reference_calls():
    for path in REFERENCE:
        tree = ast.parse(path.read_text())
        definitions = (ast.FunctionDef, ast.ClassDef)
        local = {
            node.name for p in REFERENCE for node in ast.walk(ast.parse(p.read_text())) if isinstance(node, definitions)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield path.name, node, local


def test_reference_calls_only_what_is_allowed():
    seen = 0
    for file, call, local in reference_calls():
        where = f"reference/{file}:{call.lineno}"
        seen += 1
        if isinstance(call.func, ast.Attribute):
            name = call.func.attr
            assert name in ALLOWED_CALLS, f"{where}: {name} is not on the allow-list"
            assert "alpha" not in [keyword.arg for keyword in call.keywords], f"{where}: alpha fuses"
            if name == "sqrt":
                chain = ast.unparse(call.func.value)
                assert chain.endswith(".double()") or chain == "math", f"{where}: sqrt only of float64"
        elif isinstance(call.func, ast.Name):
            allowed = ALLOWED_BUILTINS | local | {"function"}
            assert call.func.id in allowed, f"{where}: {call.func.id} is not on the allow-list"
        else:
            raise AssertionError(f"{where}: a call of what has no name")
    assert seen > 50


def test_reference_never_divides_tensors_by_python_scalars():
    for path in REFERENCE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Div):
                divisor = node.right if isinstance(node, ast.BinOp) else node.value
                named = any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(divisor))
                assert named, f"reference/{path.name}:{node.lineno}"


def test_reference_multiplies_matrices_of_grid_values_only():
    """In one function, whose operands make products that are exact in any order."""
    for path in REFERENCE:
        for function in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
                operator = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
                if operator or called in ("mm", "bmm", "matmul", "einsum"):
                    assert (path.name, function.name) == ("dots.py", "grid_products")


class FloatArithmetic(TorchDispatchMode):
    """Records the ATen ops that run on floating-point tensors."""

    def __init__(self):
        super().__init__()
        self.ops: dict[str, set] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtypes = {x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()}
        exact = " in float64" if (kwargs or {}).get("dtype") == torch.float64 else ""
        if dtypes:
            self.ops.setdefault(str(func) + exact, set()).update(dtypes)
        if "alpha" in (kwargs or {}):
            self.ops.setdefault("alpha", set()).update(dtypes)
        return func(*args, **(kwargs or {}))


# Rounds each element once, or only moves, compares or creates; mm is of exact products, clamp of no NaN, of a
# maximum that may be NaN only the exponent counts, and what is added up in float64 are integers.
ONE_ROUNDING = re.compile(
    r"aten\.(add_?|sub_?|mul_?)\.(Tensor|out|Scalar)|aten\.div_?\.(Tensor|out)|aten\.mm\.(default|out)"
    r"|aten\.(sqrt|floor_?|round_|amax|amin|maximum|neg|clamp_|nan_to_num_)\.default"
    r"|aten\.rsub\.Scalar|aten\.(sum\.dim_IntList|_to_copy\.default) in float64|aten\.(lt|gt|ge|eq|ne)\.\w+"
    r"|aten\.(where|abs|copy_|_to_copy|to|mT|clone|fill_|zero_|nonzero|index|index_put_|index_select|slice|select|view|as_strided|expand"
    r"|unsqueeze|index_copy_?|stack|cat|unbind|alias|_unsafe_view|reshape|new_empty|new_zeros|empty_like|ones_like|lift_fresh|detach"
    r"|_local_scalar_dense|new_empty_strided|zeros_like|full_like|unfold|transpose|permute|squeeze|is_same_size)(\.\w+)?"
)


@pytest.mark.parametrize("op", sorted(OPS))
def test_reference_rounds_one_operation_at_a_time(op):
    arguments = [case.args for case in DESCRIPTIONS[op].bits() if not case.slow]
    with FloatArithmetic() as recorded:
        for args in arguments:
            OPS[op].reference(*args)
    moves_bits = torch.int64 in DESCRIPTIONS[op].dtypes
    assert recorded.ops or moves_bits
    for name, dtypes in recorded.ops.items():
        assert ONE_ROUNDING.fullmatch(name), f"{op}: {name} on {dtypes}"
        assert "sqrt" not in name or dtypes == {torch.float64}
