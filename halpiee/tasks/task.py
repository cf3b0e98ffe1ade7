"""A task: the loss of a batch, the figures of a test set, and how a network gives and takes tensors.

A task is one class, in one file, that registers itself under a name::

    @halpiee.task("regression")
    class Regression(halpiee.Task): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from halpiee.data.data import Data
from halpiee.data.source import Source
from halpiee.errors import UsageError
from halpiee.zoo.registry import named_code
from latency.registry import Registry, not_known


class Metric(ABC):
    """Figures that add up over batches and processes."""

    @abstractmethod
    def add(self, answers: Any, targets: Any) -> None:
        """Takes what the network answered to a batch, and its targets; waits for no device."""

    @abstractmethod
    def merge(self, others: Sequence[Any]) -> None:
        """Takes what metrics of the same kind have seen in other processes."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Returns name → figure, the task's ``figure`` among them; shares of 1, higher is better."""


class Sums(Metric):
    """Figures of ``counts`` that add up, on the device of the answers once there are any."""

    def __init__(self, *shape: int) -> None:
        self.counts = torch.zeros(*shape, dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "counts": self.counts.cpu()}

    def count(self, more: Tensor) -> None:
        """Adds counts."""
        if self.counts.device != more.device:
            self.counts = self.counts.to(more.device)
        self.counts += more

    def merge(self, others: Sequence[Any]) -> None:
        """Adds the counts of other processes."""
        for other in others:
            self.counts = self.counts + other.counts.to(self.counts.device)


class Task(ABC):
    """What a network learns.

    An object serves one training: ``prepare`` is called before ``loss``, and may keep what the loss needs.

    Attributes:
        kind: of the targets: ``class``, ``mask`` or ``boxes``.
        names_classes: whether the largest answer along axis 1 is a target, so that a network can label images itself.
        figure: the figure that says how good a network is.
        title: this figure in words.
    """

    kind: ClassVar[str] = "class"
    names_classes: bool = False
    figure: ClassVar[str] = "accuracy"
    title: str = "Accuracy"

    def source(self, data: str, size: int | None) -> Source:
        """Returns the source that ``--data`` names; ``size``: pixels of a side; None: images stay as large as they are.

        Raises:
            DataError: there is nothing of that name.
        """
        from halpiee.data.opening import find  # which needs torchvision: a finished network does not

        return find(data, size)

    def prepare(self, data: Data, network: nn.Module) -> None:  # noqa: B027  (most tasks need no look)
        """Takes a look at the data, and at a network of the kind that is trained, before the first loss."""

    def arguments(self, n_classes: int) -> dict[str, Any]:
        """Returns the arguments of the builder of the network."""
        return {"num_classes": n_classes}

    def network(self, model: nn.Module) -> nn.Module:
        """Returns the network that is trained, pruned, timed and exported: images to one tensor or a tuple of tensors.

        Raises:
            UsageError: the task does not know this kind of model.
        """
        return model

    def wrong(self, answers: Any, n_classes: int, shape: Sequence[int]) -> str:
        """Returns what is wrong with the answers to two images, to end ``answers two images with …``; or ``""``."""
        return ""

    @abstractmethod
    def loss(self, answers: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss of a batch, a scalar, of float32 answers; ``smoothing`` is of labels, if any."""

    @abstractmethod
    def metric(self, n_classes: int) -> Metric:
        """Returns what counts the figures of a test set."""

    def distance(self, answers: Any, teacher: Any) -> Tensor:
        """Returns how far the answers are from a teacher's, to learn from it: the mean squared error of all tensors."""
        pairs = zip(tensors(answers), tensors(teacher), strict=True)
        return torch.stack([functional.mse_loss(answer, wanted) for answer, wanted in pairs]).sum()

    def predictions(self, answers: Any) -> Any:
        """Returns what a user reads off the answers: those of the exported network need the same."""
        return answers


def misshapen(answers: Any, wanted: list[int], advice: str) -> str:
    """Returns the end of ``answers two images with …`` where the answers are no tensor of a shape, else ``""``."""
    if isinstance(answers, Tensor) and list(answers.shape) == wanted:
        return ""
    said = f"{list(answers.shape)}" if isinstance(answers, Tensor) else f"a {type(answers).__name__}"
    return f"{said} where {wanted} is wanted; {advice}"


def tensors(answers: Any) -> list[Tensor]:
    """Returns the tensors of an answer."""
    return [answers] if isinstance(answers, Tensor) else list(answers)


T = TypeVar("T", bound=type[Task])

REGISTRY: Registry[type[Task]] = Registry("task", group="halpiee.tasks", home="halpiee.tasks")


def task(name: str) -> Callable[[T], T]:
    """Registers a task under the name that ``--task`` takes; refuses a name that another task has."""

    def register(kind: T) -> T:
        REGISTRY.add(name, kind, kind)
        return kind

    return register


def named(name: str) -> Task:
    """Returns a task by its name, or by ``package.module:Class``, which is imported from the working directory too.

    Raises:
        UsageError: there is no such task.
    """
    if ":" not in name:
        if name not in REGISTRY:
            raise not_known("task", name, REGISTRY.names(), more=", or package.module:Task")
        return REGISTRY[name]()
    found = named_code(name, "--task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UsageError(f"--task {name} was asked, which is no class of halpiee.Task; derive it from that")
    return found()
