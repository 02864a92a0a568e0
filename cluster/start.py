"""Embed in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from ..embedding.embedder import Embedder
from ..embedding.jobs import Job, Result
from ..embedding.local import embed_locally
from .options import RayOptions


def start_embedding(
    jobs: Iterable[Job],
    embedder: Embedder,
    ray: RayOptions | None,
    *,
    batch_size: int,
    local_workers: int,
    task_workers: int,
    is_video: bool = False,
    in_order: bool = False,
) -> Generator[list[Result], None, None]:
    """Embed the parts of files in this process or on a cluster.

    Args:
        jobs: the files
        embedder: the embedder
        ray: the cluster; None is this process
        batch_size: the number of images per forward pass
        local_workers: the number of threads that read in this process
        task_workers: the number in each task of the cluster
        is_video (False): whether the files are videos
        in_order (False): see :func:`fiftyone_hiera.embedding.local.embed_locally`

    Returns:
        a generator of lists of results
    """
    if ray is not None:
        from .driver import embed_on_ray

        return embed_on_ray(
            jobs,
            embedder,
            ray,
            is_video=is_video,
            batch_size=batch_size,
            num_workers=task_workers,
        )

    return embed_locally(
        jobs,
        embedder,
        is_video=is_video,
        batch_size=batch_size,
        num_workers=local_workers,
        in_order=in_order,
    )
