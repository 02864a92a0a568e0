"""The operators: what the App, and Python through it, can ask of this package.

FiftyOne imports this module whenever it lists operators, so what takes long to
import is imported where it is used.
"""

from __future__ import annotations

import logging
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from .compute_params import check_names, rename_params
from .widgets import show_obstacle

logger = logging.getLogger(__name__)

_STOP = "stop_hiera_embeddings"


class ComputeHieraEmbeddings(foo.Operator):
    """Embeds images, patches or frames; indexes them and draws their map on request."""

    @property
    def config(self) -> foo.OperatorConfig:
        """The name of the operator, and how it runs."""
        return foo.OperatorConfig(
            name="compute_hiera_embeddings",
            label="Compute Hiera embeddings",
            description="Embed images, patches or video frames with Hiera",
            icon="/assets/embed.svg",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            view_target=False,  # the form has its own, where there is a form
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
        """Compute embeddings, from Python.

        Args:
            sample_collection: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView`
            model_name (None): the name of a checkpoint; by default, hiera-tiny
            embeddings_field (None): the field to store the vectors in, which
                ``field_name`` and ``emb_field`` name too; by default "hiera"
            pooling (None): "mean", "cls" or "pooler", which ``embedding_type`` and
                ``embedding_types`` name too; by default "mean"
            delegate (False): whether to queue the run for a delegated service
            **params: the other fields of
                :class:`fiftyone_hiera.plugin.compute_params.EmbeddingParams`

        Returns:
            a :class:`fiftyone.operators.executor.ExecutionResult`, whose ``result``
            is the report of the run; where an event loop runs, as in a notebook,
            a task to ``await``

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
        """Delegate, if a parameter of that name says so."""
        return True if ctx.params.get("delegate") else None

    def resolve_placement(self, ctx: Any) -> types.Placement:
        """Appear among the actions of the grid."""
        return _place_in_grid(self.config)

    def resolve_input(self, ctx: Any) -> types.Property:
        """Build the form, and check what was entered."""
        try:
            from .compute_form import build_form
        except ImportError as error:
            return _name_missing_package(error)

        ctx.params = ctx.request_params["params"] = rename_params(ctx.params)
        if not _is_from_app(ctx):
            check_names(ctx.params)

        return build_form(ctx)

    async def execute(self, ctx: Any) -> Any:
        """Run, as a stream of progress in the App, else to the end."""
        from .compute_run import finish, stream

        if _is_from_app(ctx) and not ctx.delegated:
            return stream(ctx, on_stop=f"{self.plugin_name}/{_STOP}")

        # Nothing is awaited, on purpose: FiftyOne would cut the run after 10 minutes
        return finish(ctx)

    def resolve_output(self, ctx: Any) -> types.Property | None:
        """Show the report of a delegated run; a stream has shown its own."""
        from .outputs import report_view

        return report_view(ctx.dataset, ctx.results) if ctx.results else None


class StopHieraEmbeddings(foo.Operator):
    """Stops a run in the App; what was embedded stays stored."""

    @property
    def config(self) -> foo.OperatorConfig:
        """The name of the operator, which is only for the button of a run."""
        return foo.OperatorConfig(
            name=_STOP, label="Stop computing Hiera embeddings", unlisted=True
        )

    def execute(self, ctx: Any) -> None:
        """Ask the run to stop."""
        from .compute_run import stop

        stop(ctx.params["run"])


class SortByHieraSimilarity(foo.Operator):
    """Sorts the view by similarity to an image from the user's disk."""

    @property
    def config(self) -> foo.OperatorConfig:
        """The name of the operator."""
        return foo.OperatorConfig(
            name="sort_by_hiera_similarity",
            label="Sort by Hiera similarity to an image",
            description="Find what resembles an image of yours",
            icon="/assets/search.svg",
            dynamic=True,
        )

    def resolve_placement(self, ctx: Any) -> types.Placement:
        """Appear among the actions of the grid."""
        return _place_in_grid(self.config)

    def resolve_input(self, ctx: Any) -> types.Property:
        """Build the form: an index and an image."""
        try:
            from .search import build_form
        except ImportError as error:
            return _name_missing_package(error)

        return build_form(ctx)

    def execute(self, ctx: Any) -> None:
        """Sort the view."""
        from .outputs import show_error
        from .search import sort_view

        try:
            view = sort_view(ctx)
        except Exception as error:
            if not _is_from_app(ctx):
                raise

            # The App itself would say no more than that there was an error
            logger.exception("sort_by_hiera_similarity failed")
            ctx.trigger("show_output", show_error("This image was not searched for", error))
        else:
            ctx.ops.set_view(view)


def _is_from_app(ctx: Any) -> bool:
    # Its requests alone name the operator
    return "operator_uri" in ctx.request_params


def _name_missing_package(error: ImportError) -> types.Property:
    return show_obstacle(
        f"{error}. Install what this plugin needs: fiftyone plugins requirements "
        "@fiftyone-hiera/plugin --install"
    )


def _place_in_grid(config: foo.OperatorConfig) -> types.Placement:
    button = types.Button(label=config.label, icon=config.icon)
    return types.Placement(types.Places.SAMPLES_GRID_SECONDARY_ACTIONS, button)
