"""What a network learns: which data it is given, its loss, and the figures that say how well it does."""

from halpiee.tasks.task import Metric, Task, named, task

__all__ = ["Metric", "Task", "named", "task"]
