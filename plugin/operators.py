"""Operators of the plugin: they read FiftyOne's context, and hand on values.

FiftyOne imports this module whenever it lists operators, so modules that are slow to
import are imported inside the methods that use them.
"""

from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.executor import ValidationContext

from ..runs.fiftyone_internals import load_dataset
from .widgets import error_form

logger = logging.getLogger(__name__)

_PLUGIN = "@fiftyone-hiera/hiera"
_STOP = "stop_hiera_embeddings"


class _GridOperator(foo.Operator):
    """An operator with a button in the actions row of the grid."""

    def resolve_placement(self, ctx: Any) -> types.Placement:
        """Place the button."""
        button = types.Button(label=self.config.label, icon=self.config.icon)
        return types.Placement(types.Places.SAMPLES_GRID_SECONDARY_ACTIONS, button)


class ComputeHieraEmbeddings(_GridOperator):
    """Computes embeddings and, on request, a similarity index and a visualization."""

    @property
    def config(self) -> foo.OperatorConfig:
        """The configuration of the operator."""
        return foo.OperatorConfig(
            name="compute_hiera_embeddings",
            label="Compute Hiera embeddings",
            description="Embed images, patches or video frames with Hiera",
            icon="/assets/embed.svg",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            view_target=False,  # the form has one
        )

    def __call__(
        self,
        sample_collection: Any,
        model_name: str | None = None,
        embeddings_field: str | None = None,
        pooling: str | None = None,
        delegate: bool = False,
        **params: Any,
    ) -> Any:
        """Compute embeddings from Python.

        Args:
            sample_collection: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView`
            model_name (None): the name of a checkpoint; by default, hiera-tiny
            embeddings_field (None): the field to store the embeddings in, also
                ``field_name`` or ``emb_field``; by default "hiera"
            pooling (None): "mean", "cls" or "pooler", also ``embedding_type`` or
                ``embedding_types``; by default that of the checkpoint
            delegate (False): whether to schedule the run for a delegated operation service
            **params: the other parameters of
                :class:`fiftyone_hiera.plugin.compute_params.EmbeddingParams`

        Returns:
            a :class:`fiftyone.operators.executor.ExecutionResult`, whose ``result``
            is the report of the run; in a notebook or another running event loop, a
            task to ``await``

        Raises:
            ValueError: if a parameter is unknown
            fiftyone.operators.executor.ExecutionError: if a parameter is not
                valid, or if the run had to stop
        """
        given = {
            "model_name": model_name,
            "embeddings_field": embeddings_field,
            "pooling": pooling,
        }
        params |= {name: value for name, value in given.items() if value is not None}
        return foo.execute_operator(
            self.uri,
            view=sample_collection.view(),
            params=params,
            request_delegation=delegate,
        )

    def resolve_delegation(self, ctx: Any) -> bool | None:
        """Delegate the run if the parameter ``delegate`` is set."""
        return True if ctx.params.get("delegate") else None

    def resolve_input(self, ctx: Any) -> types.Property:
        """Build the form and validate its inputs."""
        try:
            from .compute_form import TITLE, build_form
            from .compute_request import read_request
        except ImportError as error:
            return _missing_package_form(error)

        given = _read_params(ctx, self.uri)
        try:
            request = read_request(given)
        except ValueError as error:
            return error_form(str(error), TITLE)

        form, _ = build_form(request)
        return form

    async def execute(self, ctx: Any) -> Any:
        """Run; in the App, as a generator of messages that show the progress."""
        from .compute_form import check_form
        from .compute_plan import make_plan
        from .compute_request import read_request
        from .compute_run import finish, stream

        given = _read_params(ctx, self.uri)
        request = read_request(given)
        if _is_from_app(ctx, self.uri) and not ctx.delegated:
            # FiftyOne has checked the form
            plan = partial(make_plan, request)
            return stream(plan, ctx.trigger, on_stop=f"{_PLUGIN}/{_STOP}")

        plan = partial(
            check_form, request, lambda form: ValidationContext(given, form, self).errors
        )
        return await finish(plan, ctx.set_progress if ctx.delegated else None)

    def resolve_output(self, ctx: Any) -> types.Property | None:
        """Show the report of a delegated run; in the App, the run shows its own."""
        from .outputs import report_view

        return report_view(load_dataset(ctx), ctx.results) if ctx.results else None


class StopHieraEmbeddings(foo.Operator):
    """Stops a run in the App; the embeddings computed so far are kept."""

    @property
    def config(self) -> foo.OperatorConfig:
        """The configuration of the operator; unlisted, as only the Stop button uses it."""
        return foo.OperatorConfig(
            name=_STOP, label="Stop computing Hiera embeddings", unlisted=True
        )

    def execute(self, ctx: Any) -> None:
        """Ask the run to stop."""
        from .compute_run import stop

        stop(ctx.params["run"])


class SortByHieraSimilarity(_GridOperator):
    """Sorts the view by similarity to an uploaded image."""

    @property
    def config(self) -> foo.OperatorConfig:
        """The configuration of the operator."""
        return foo.OperatorConfig(
            name="sort_by_hiera_similarity",
            label="Sort by Hiera similarity to an image",
            description="Find the samples most similar to an image that you upload",
            icon="/assets/search.svg",
            dynamic=True,
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """Build the form."""
        try:
            from .search import build_form, read_search
        except ImportError as error:
            return _missing_package_form(error)

        return build_form(read_search(ctx))

    def execute(self, ctx: Any) -> None:
        """Sort the view."""
        from .outputs import show_error
        from .search import read_search, sort_view

        try:
            view = sort_view(read_search(ctx))
        except Exception as error:
            if not _is_from_app(ctx, self.uri):
                raise

            # The App itself does not show the message of an error
            logger.exception("sort_by_hiera_similarity failed")
            ctx.trigger("show_output", show_error("The search failed", error))
        else:
            if ctx.params.get("dist_field"):
                ctx.ops.reload_dataset()

            ctx.ops.set_view(view)


OPERATORS = (ComputeHieraEmbeddings, SortByHieraSimilarity, StopHieraEmbeddings)


def _is_from_app(ctx: Any, uri: str) -> bool:
    # Requests of the App contain the URI of the operator, or of one that calls it
    return bool(ctx.request_params.get("operator_uri") == uri)


def _read_params(ctx: Any, uri: str) -> Any:
    """Return a context whose parameters are renamed and, unless by the App, checked."""
    from .compute_params import check_names, rename_params

    load_dataset(ctx)
    given = ctx.params
    if ctx.pipeline is not None:
        # FiftyOne puts the parameters of a stage into the request alone
        given = ctx.request_params.get("params") or {}

    renamed = copy.copy(ctx)
    renamed.params = rename_params(given)
    if not _is_from_app(ctx, uri):
        check_names(renamed.params)

    return renamed


def _missing_package_form(error: ImportError) -> types.Property:
    return error_form(
        f"{error}. Install the requirements of this plugin: fiftyone plugins requirements "
        f"{_PLUGIN} --install"
    )
