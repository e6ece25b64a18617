"""The nearest keys against the eager code of those who need them."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(1, 576, 1024, 7), (1, 2048, 64, 8), (1, 2048, 1024, 8)]
if CUDA:
    SHAPES += [(16, 576, 1024, 7), (1, 16384, 1024, 32)]


def eager_distances(x, k):
    """As in DPC-KNN: every distance, then `topk`."""
    return torch.cdist(x, x).topk(k, largest=False)


def eager_cosine(x, k):
    units = x / x.norm(dim=-1, keepdim=True)
    return (units @ units.mT).topk(k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_nearest(compare, shape, metric, dtype):
    """Batch, tokens, features, neighbours; `cdist` takes no bfloat16 and gets float32."""
    batch, tokens, features, k = shape
    x = torch.randn(batch, tokens, features, device=DEVICE).to(dtype)

    def ours(precision):
        return lambda x, k: pyramid_ops.nearest(x, x, k, metric=metric, precision=precision)

    providers = {"pyramid_ops": ours("high")}
    if metric == "cosine":
        providers |= {"pyramid_ops, grid": ours("grid"), "eager": eager_cosine}
    else:
        providers["eager"] = lambda x, k: eager_distances(x.float(), k)
    compare(providers, (x, k), x.nbytes + batch * tokens * k * 12)


def eager_clusters(x, clusters, k):
    """As in the authors' code, without its noise."""
    batch, tokens, features = x.shape
    distances = torch.cdist(x, x) / features**0.5
    density = (-distances.topk(k, largest=False).values.square().mean(-1)).exp()
    denser = (density[:, None, :] > density[:, :, None]).to(x.dtype)
    most = distances.flatten(1).max(-1).values[:, None, None]
    separation = (distances * denser + most * (1 - denser)).min(-1).values
    centers = (separation * density).topk(clusters).indices
    nearest = distances.gather(1, centers[..., None].expand(-1, -1, tokens)).argmin(1)
    nearest.scatter_(1, centers, torch.arange(clusters, device=x.device).expand(batch, -1))
    return centers, nearest


@pytest.mark.parametrize("shape", [(1, 576, 1024, 40, 7), (2, 2048, 64, 200, 8)], ids=lambda s: "x".join(map(str, s)))
def test_dpc_knn(compare, shape):
    """Batch, tokens, features, clusters, neighbours; float32."""
    batch, tokens, features, clusters, k = shape
    x = torch.randn(batch, tokens, features, device=DEVICE)
    providers = {"pyramid_ops": pyramid_ops.dpc_knn, "eager": eager_clusters}
    compare(providers, (x, clusters, k), x.nbytes + batch * (tokens + clusters) * 8)
