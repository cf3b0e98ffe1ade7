from halpiee.tasks.task import Metric as Metric
from halpiee.tasks.task import Task as Task
from halpiee.tasks.task import named as named
from halpiee.tasks.task import task as task
