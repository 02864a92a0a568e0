"""Start encoders on the cluster, send them pieces, and replace those that die."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from .blocks import Block
from .encoder_actor import EncoderActor, EncoderSpec
from .reading import Piece
from .session import Actors

# The calls that an encoder has in hand, so that it does not wait for the driver
_MOST_CALLS = 3

# So many encoders die in a row before one embeds anything, for each that there should be
_MOST_DEATHS = 4

# So many pieces of a block are lost in a row
_MOST_LOSSES = 10

# After so many seconds without an encoder, none will come
_START_SECONDS = 600

_NOTHING = Piece([], np.empty(0))


@dataclass(eq=False)
class _Encoder:
    actor: Any
    is_ready: bool = False


@dataclass(frozen=True)
class _Sent:
    block: Block
    pixels: Any


class Encoders:
    """Starts, feeds and replaces the encoders of a run.

    Args:
        spec: the encoder
        actors: their number and resources
        batch_size: the number of images per forward pass
    """

    def __init__(self, spec: EncoderSpec, actors: Actors, batch_size: int) -> None:
        self._count = actors.count
        self._arguments = spec, batch_size, actors.num_threads
        self._actor_class: Any = ray.remote(
            num_cpus=actors.num_cpus,
            num_gpus=actors.num_gpus,
            scheduling_strategy="SPREAD",
        )(EncoderActor)
        self._encoders: list[_Encoder] = []
        self._calls: dict[Any, tuple[_Encoder, _Sent | None]] = {}
        self._unsent: deque[_Sent] = deque()
        self._deaths = 0
        self._last_ready = time.monotonic()
        for _ in range(self._count):
            self._start()

    @property
    def calls(self) -> list[Any]:
        """References to what they have not answered yet."""
        return [*self._calls]

    @property
    def are_ready(self) -> bool:
        """Whether the process of at least one has started."""
        return any(encoder.is_ready for encoder in self._encoders)

    @property
    def have_room(self) -> bool:
        """Whether one of them takes another piece at once."""
        return not self._unsent and self._least_busy() is not None

    def encode(self, block: Block, pixels: Any) -> None:
        """Send a piece of a block, by a reference, to the encoder with the least to do."""
        block.pending += 1
        self._unsent.append(_Sent(block, pixels))
        self._send()

    def take(self, call: Any) -> tuple[Block, Piece] | None:
        """Take an answer.

        Args:
            call: one of :attr:`calls` that is ready

        Returns:
            a tuple of the block and the piece with embeddings, an empty one if it is lost;
            None if it is not about a piece, or if the piece was sent again

        Raises:
            RuntimeError: if an encoder cannot be loaded or fails, or if too much is lost
        """
        encoder, sent = self._calls.pop(call)
        answer: Any = _NOTHING
        try:
            answer = ray.get(call)
            encoder.is_ready = True
        except RayTaskError as error:
            if not isinstance(error.cause, RayError):
                raise RuntimeError(str(error.cause)) from error

            self._lose(sent, error)  # it could not fetch the pixels
        except RayActorError as error:
            self._replace(encoder, error)
            self._lose(sent, error)
            if sent is not None:
                self._unsent.append(sent)
                sent = None
        except RayError as error:
            self._lose(sent, error)

        self._send()
        if sent is None:
            return None

        sent.block.pending -= 1
        if answer is not _NOTHING:
            self._deaths = sent.block.losses = 0

        return sent.block, answer

    def check(self) -> None:
        """Check that there is an encoder, or may still be one.

        Raises:
            RuntimeError: if none could be started for a long time
        """
        if self.are_ready:
            self._last_ready = time.monotonic()
        elif time.monotonic() - self._last_ready > _START_SECONDS:
            resources = ray.cluster_resources()
            raise RuntimeError(
                f"No encoder could be started within {_START_SECONDS} s. The cluster has "
                f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; "
                "nodes may be lost, or other jobs use them"
            )

    def stop(self) -> None:
        """End their processes."""
        for encoder in self._encoders:
            ray.kill(encoder.actor)

    def _start(self) -> None:
        encoder = _Encoder(self._actor_class.remote(*self._arguments))
        self._encoders.append(encoder)
        for method in (encoder.actor.start, encoder.actor.load):
            self._calls[method.remote()] = encoder, None

    def _replace(self, encoder: _Encoder, error: RayError) -> None:
        if encoder not in self._encoders:
            return

        self._encoders.remove(encoder)
        ray.kill(encoder.actor)  # if it was only out of reach
        self._deaths += 1
        if self._deaths > _MOST_DEATHS * self._count:
            raise RuntimeError(f"Ray stopped: {error}") from error

        self._start()

    def _lose(self, sent: _Sent | None, error: RayError) -> None:
        if sent is None:
            return

        sent.block.losses += 1
        if sent.block.losses > _MOST_LOSSES:
            raise RuntimeError(f"Ray stopped: {error}") from error

    def _send(self) -> None:
        while self._unsent and (encoder := self._least_busy()) is not None:
            sent = self._unsent.popleft()
            self._calls[encoder.actor.encode.remote(sent.pixels)] = encoder, sent

    def _least_busy(self) -> _Encoder | None:
        """Return the encoder with the least to do; None if none takes another piece."""
        calls = Counter(encoder for encoder, _ in self._calls.values())
        ready = [encoder for encoder in self._encoders if encoder.is_ready]
        encoder = min(ready, key=lambda encoder: calls[encoder], default=None)
        return None if encoder is None or calls[encoder] >= _MOST_CALLS else encoder
