"""The backend of Keras as an optimizer needs it: one module with these functions, chosen once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import keras

from kopt.optimizers.engine.backends.records import Gradient, Products, Write
from kopt.optimizers.engine.tensor_math import Tensor

Place = Literal["open", "compiled", "replica"]
"""Where a step is asked for: in eager code or a plain graph, inside of what compiles the whole train step, or on one of
several replicas."""
Update = tuple[list[Write], Tensor | None]
"""The writes of an update, and for each gradient whether all is finite."""


class Backend(Protocol):
    """What `on_tensorflow` and `on_jax_and_torch` offer."""

    has_rows: bool
    """Whether gradients may name the rows that they belong to."""

    # ---------------------------------------------------------------------------------------------- running

    def unconverted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function kept from tools that would rewrite its Python code or record its gradient."""

    def place(self) -> Place:
        """Returns where the caller is."""

    def is_traced(self) -> bool:
        """Whether the caller is being traced, so that what is not a tensor stays as it is now."""

    def compiled(self, graphs: dict[str, Any], name: str, function: Callable[..., Any], xla: bool = False) -> Any:
        """Returns the function compiled, as `graphs` keeps it under a name; by XLA if asked for."""

    def widest(self) -> str:
        """Returns the type of the most precise arithmetic, float64 or float32."""

    def check_place(self, owner: str) -> None:
        """Raises `ValueError` where the weights are to lie on devices in a way that is not carried out."""

    def cond(self, condition: Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """Returns what one of two functions returns; only that one runs."""

    def in_turn(self, calls: Sequence[Callable[[], Any]]) -> None:
        """Makes calls that return a tensor, none before the last one is done."""

    def on_host(self, owner: str, call: Callable[..., None], tensors: Sequence[Any], after: Sequence[Any]) -> None:
        """Makes a call with the values of tensors at each step, outside of what is compiled, after others are known."""

    def replicas(self) -> int:
        """Returns how many replicas train."""

    def sum_over_replicas(self, gradients: Sequence[Any]) -> list[Any]:
        """Returns the sums of gradients over all replicas; None stays None."""

    def stop_unless(self, fine: Callable[[], Tensor], message: str) -> None:
        """Raises an error unless all is `fine`, where the train step can stop at all."""

    def raise_on(self, flags: Tensor, labels: Sequence[str], owner: str) -> None:
        """Raises an error that names the weights whose flag is False."""

    def noted(self, loss: Tensor, note: Callable[[Tensor], None]) -> Tensor:
        """Calls `note` with a loss that can be read after its gradient was taken; returns the loss to differentiate."""

    def differentiated(
        self, function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool
    ) -> Callable[..., Any]:
        """Returns a function that returns the value of `function` and its dense gradients.

        Args:
            function: returns a scalar.
            variables: what it is differentiated by.
            state: other variables that it may change.
            compiled: whether to compile it, where the backend can.
        """

    def products(
        self, function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool
    ) -> Products:
        """Returns products with the derivatives of a function that returns numbers; arguments as above."""

    # ---------------------------------------------------------------------------------------------- variables

    def value(self, variable: Any) -> Tensor:
        """Reads a variable into a tensor, which holds until something is assigned to the variable."""

    def holds(self, variable: Any) -> bool:
        """Whether a variable has a value: in `fit` JAX takes it away, and a step that fails gives none back."""

    def take(self, variable: Any, rows: Tensor) -> Tensor:
        """Reads rows of a variable."""

    def commit(self, writes: Sequence[Write]) -> None:
        """Carries out assignments."""

    def commit_if(self, condition: Tensor | None, compute: Callable[[], Update]) -> Tensor | None:
        """Carries out what `compute` returns where the condition holds; None is always. Returns its flags."""

    def add_beside(self, optimizer: Any, like: Any, name: str, shape: Any, dtype: Any, initializer: Any) -> Any:
        """Adds a variable to an optimizer, on the devices of another one."""

    def outside_graph(self) -> AbstractContextManager[Any]:
        """Lets assignments happen now, even if `build` is called while a train step is traced."""

    def where_slots_begin(self, owner: str, variables: Sequence[Any], copying: bool) -> AbstractContextManager[Any]:
        """Scope in which slots are created, some as copies of weights if `copying`."""

    # ---------------------------------------------------------------------------------------------- gradients

    def as_given(self, gradient: Any) -> Any:
        """Returns a gradient whose parts are tensors."""

    def is_of_rows(self, gradient: Any) -> bool:
        """Whether a gradient names the rows that it belongs to."""

    def static_shape(self, gradient: Any) -> tuple[int | None, ...] | None:
        """Returns the shape of a gradient as far as it is known; None if nothing is."""

    def read_gradient(self, gradient: Any, variable: Any, dtype: str, lazy: bool) -> Gradient:
        """Returns a gradient in the precision of the arithmetic; that of rows with repeated ones summed if `lazy`."""

    def bounds_of_squares(self, gradients: Sequence[Any], dtypes: Sequence[str], dtype: str) -> Tensor:
        """Returns for each gradient, as it comes, a number that twice its squared norm does not exceed."""

    def marked_rows(self, marks: Any) -> Tensor:
        """Returns the places where a variable of booleans is true; None where their number cannot be told."""

    def sparse(self, values: Tensor, rows: Tensor) -> Any:
        """Returns a gradient of rows."""


def _choose() -> Backend:
    if keras.backend.backend() == "tensorflow":
        from kopt.optimizers.engine.backends import on_tensorflow

        return on_tensorflow
    from kopt.optimizers.engine.backends import on_jax_and_torch

    return on_jax_and_torch


backend = _choose()
