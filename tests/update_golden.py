"""`python -m tests.update_golden`: write `pyramid_ops/verify/golden.json` from the reference, and say what changed.

A changed digest is a changed specification: no bug fix in a kernel, no speed-up and no new version may need it.
"""

import json

import torch

from pyramid_ops import verify
from pyramid_ops._op import OPS, use_backend
from pyramid_ops.verify.cases import DESCRIPTIONS


def main() -> None:
    torch.set_num_threads(1)
    old = json.loads(verify.GOLDEN.read_text()) if verify.GOLDEN.exists() else {}
    new: dict = {}
    with use_backend("reference"):
        for op in sorted(OPS):
            new[op] = {case: verify.digests_of(op, args) for case, args, _ in DESCRIPTIONS[op].golden()}
    for op in sorted({*old, *new}):
        before, after = old.get(op, {}), new.get(op, {})
        for case in sorted({*before, *after}):
            if before.get(case) != after.get(case):
                state = "added" if case not in before else "removed" if case not in after else "CHANGED"
                print(f"{state}: {op}, {case}")
    lines = [
        f'"{op}": {{\n'
        + ",\n".join(f"{json.dumps(case)}: {json.dumps(entry)}" for case, entry in cases.items())
        + "\n}"
        for op, cases in new.items()
    ]
    verify.GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{sum(map(len, new.values()))} cases of {len(new)} ops")


if __name__ == "__main__":
    main()
