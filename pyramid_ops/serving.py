"""What serving engines need, and nothing of theirs: how many tokens stay, before the encoder runs; which, after it.

An engine reserves placeholders for :func:`retained_count` tokens while it only knows the sizes of images and videos,
and reads :func:`retention_mask` of the features. The two functions of vLLM's contract for EVS have its exact names and
arguments, so that a plugin (entry point group ``vllm.general_plugins``) is::

    def register():
        import vllm.multimodal.evs as evs
        from pyramid_ops import serving

        evs.compute_retained_tokens_count = serving.compute_retained_tokens_count
        evs.compute_retention_mask = serving.compute_retention_mask

before models are imported that read them from there.
"""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import _checks as check
from .methods import evs, retained
from .ops.greedy import greedy_select
from .plans.kept import keep, mask

__all__ = [
    "compute_retained_tokens_count",
    "compute_retention_mask",
    "media_positions",
    "retained_count",
    "retention_mask",
]

METHODS = ("attention", "cdpruner", "divprune", "evs")
#: (frames, rows, columns) of tokens.
Size = tuple[int, int, int]


def retained_count(method: str, size: Size, rate: float) -> int:
    """How many tokens of an image or video stay, on the host, before anything runs.

    Parameters
    ----------
    method : str
        "attention" (:func:`pyramid_ops.methods.fastervlm` and others that keep the greatest scores), "cdpruner",
        "divprune" or "evs".
    size : (int, int, int)
        Frames, rows and columns of the tokens that the language model reads, after any merger; an image is one frame.
    rate : float
        The share that goes, from 0 to less than 1.

    Returns
    -------
    int
        int(n · (1 − rate)), and of "evs" no less than a frame. The product is rounded to six digits first, so that 0.9
        of ten tokens leave one; that of "evs" is not, as vLLM's.

    Raises
    ------
    TypeError, ValueError
        For another method, size or rate.

    Examples
    --------
    >>> from pyramid_ops import serving
    >>> serving.retained_count("divprune", (1, 24, 24), 0.75), serving.retained_count("evs", (2, 8, 8), 0.75)
    (144, 64)
    """
    op = "retained_count"
    check.choice(op, "method", method, *METHODS)
    frames, rows, columns = _size(op, "size", size)
    rate = _rate(op, "rate", rate)
    if method == "evs":
        return retained.evs(rows * columns, frames, rate)
    return int(round(frames * rows * columns * (1 - rate), 6))


def retention_mask(
    method: str,
    embeddings: Tensor,
    sizes: Union[Size, Sequence[Size]],
    rate: float,
    *,
    scores: Optional[Tensor] = None,
) -> Tensor:
    """Which tokens of an image, a video or a packed batch of them stay.

    Parameters
    ----------
    method : str
        As in :func:`retained_count`: "attention" keeps the greatest `scores`; "divprune" tokens that differ from each
        other; "cdpruner" tokens that differ and are relevant by `scores`; "evs" the first frame, and of the others what
        differs from the frame before.
    embeddings : Tensor
        ``[T, D]``: features of each image or video one after the other; float16, bfloat16 or float32.
    sizes : (int, int, int) or sequence of them
        Of one image or video, or of each.
    rate : float
        The share that goes.
    scores : Tensor, optional
        ``[T]``: "attention", such as :func:`pyramid_ops.methods.class_attention`, and relevance of "cdpruner".

    Returns
    -------
    Tensor
        bool ``[T]``, with :func:`retained_count` tokens of each.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, device or option, sizes that are not those of the embeddings, or scores that are
        missing or of another length.

    Notes
    -----
    The same bits on every device, of each image or video as alone; no host synchronisation but for offsets of a packed
    batch, which are copied to the device. "evs" runs video by video.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import serving
    >>> x, sizes = torch.randn(80, 32), [(1, 4, 4), (4, 4, 4)]
    >>> serving.retention_mask("divprune", x, sizes, 0.75).split([16, 64])[1].sum()
    tensor(16)
    """
    op = "retention_mask"
    check.choice(op, "method", method, *METHODS)
    check.tensor(op, "embeddings", embeddings, "T D", dtypes=check.FLOATS)
    sizes = check.sequence(op, "sizes", sizes)
    one = len(sizes) == 3 and not check.is_sequence(sizes[0])
    each = [_size(op, f"sizes[{k}]", size) for k, size in enumerate([sizes] if one else sizes)]
    lengths = [frames * rows * columns for frames, rows, columns in each]
    if sum(lengths) != embeddings.shape[0]:
        raise ValueError(f"{op}: sizes: expected {embeddings.shape[0]} tokens as the embeddings, got {sum(lengths)}")
    if (scores is not None) != (method in ("attention", "cdpruner")):
        expected = "None" if scores is not None else "a tensor [T]"
        raise ValueError(f"{op}: scores: expected {expected} for {method!r}, got {check.describe(scores)}")
    if scores is not None:
        check.tensor(op, "scores", scores, "T", dtypes=check.FLOATS)
        check.same_size(op, "scores", scores, embeddings.shape[:1], embeddings.device)
    counts = [retained_count(method, size, _rate(op, "rate", rate)) for size in each]
    if not each:
        return torch.zeros(0, dtype=torch.bool, device=embeddings.device)
    if method == "evs":
        videos = zip(embeddings.split(lengths), each, counts, strict=True)
        return torch.cat([_evs(x, size, count) for x, size, count in videos])
    offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(embeddings.device)
    many = counts if len(counts) <= 256 else torch.tensor(counts).to(embeddings.device)
    packed: dict[str, Any] = {"cu_seqlens": offsets, "max_seqlen": max(lengths), "capacity": max(counts)}
    if method == "attention" and scores is not None:
        return mask(keep(scores, many, **packed))
    rule = "dpp" if method == "cdpruner" else "maxmin"
    return mask(greedy_select(embeddings, many, rule=rule, relevance=scores, order="index", **packed))


def media_positions(
    size: Size, *, start: int = 0, step: float = 1, device: Union[torch.device, str, None] = None
) -> Tensor:
    """M-RoPE positions of an image's or video's tokens; those that stay keep theirs: ``positions[:, mask]``.

    Parameters
    ----------
    size : (int, int, int)
        Frames, rows and columns of the tokens.
    start : int
        Position of the first token.
    step : float
        Positions from frame to frame, as tokens per second times seconds per frame; rounded down.
    device : torch.device or str, optional
        Where the positions are.

    Returns
    -------
    Tensor
        int64 ``[3, N]``: frame, row and column of each token.

    Raises
    ------
    TypeError, ValueError
        For another size, start or step.

    Examples
    --------
    >>> from pyramid_ops import serving
    >>> serving.media_positions((2, 1, 2), start=5, step=2.5)
    tensor([[5, 5, 7, 7],
            [5, 5, 5, 5],
            [5, 6, 5, 6]])
    """
    op = "media_positions"
    frames, rows, columns = _size(op, "size", size)
    check.integer(op, "start", start, 0)
    if check.number(op, "step", step) < 0:
        raise ValueError(f"{op}: step: expected at least 0, got {step}")
    steps = (torch.arange(frames, dtype=torch.float64) * step).to(torch.int64)
    grid = torch.meshgrid(steps, torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack(grid).reshape(3, -1) + start).to(device)


def compute_retained_tokens_count(tokens_per_frame: int, num_frames: int, q: float) -> int:
    """As vLLM's: tokens of a video that stay where the share `q` goes, at least a frame.

    >>> from pyramid_ops import serving
    >>> serving.compute_retained_tokens_count(64, 8, 0.75)
    128
    """
    op = "compute_retained_tokens_count"
    tokens_per_frame = check.integer(op, "tokens_per_frame", tokens_per_frame, 1)
    return retained.evs(tokens_per_frame, check.integer(op, "num_frames", num_frames, 1), _rate(op, "q", q))


def compute_retention_mask(
    video_embeds: Tensor, video_size_thw: Union[Tensor, Sequence[int]], spatial_merge_size: int, q: float
) -> Tensor:
    """As vLLM's: bool ``[T · H · W / spatial_merge_size²]``, which tokens of a video stay where the share `q` goes.

    Cosines are exact, where theirs are in the dtype of the features, and ties so go to other tokens; a size that is a
    tensor is read on the host.

    >>> import torch
    >>> from pyramid_ops import serving
    >>> serving.compute_retention_mask(torch.randn(32, 8), (2, 8, 8), 2, 0.5).sum()
    tensor(16)
    """
    op = "compute_retention_mask"
    thw = video_size_thw.tolist() if isinstance(video_size_thw, Tensor) else video_size_thw
    frames, rows, columns = _size(op, "video_size_thw", thw)
    merge = check.integer(op, "spatial_merge_size", spatial_merge_size, 1)
    if merge > min(rows, columns):
        raise ValueError(f"{op}: spatial_merge_size: expected at most {min(rows, columns)}, got {merge}")
    return retention_mask("evs", video_embeds, (frames, rows // merge, columns // merge), _rate(op, "q", q))


def _evs(x: Tensor, size: Size, count: int) -> Tensor:
    frames, rows, columns = size
    return mask(evs(x.reshape(1, frames, rows * columns, -1), keep=count))[0]


def _size(op: str, name: str, size: Any) -> Size:
    sides = check.sequence(op, name, size)
    if len(sides) != 3:
        raise ValueError(f"{op}: {name}: expected (frames, rows, columns), got {size!r}")
    frames, rows, columns = (check.integer(op, f"{name}[{k}]", side, 1) for k, side in enumerate(sides))
    return frames, rows, columns


def _rate(op: str, name: str, rate: Any) -> float:
    if not 0 <= check.number(op, name, rate) < 1:
        raise ValueError(f"{op}: {name}: expected at least 0 and less than 1, got {rate}")
    return float(rate)
