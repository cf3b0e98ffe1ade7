from halpiee.studies.study import Cell as Cell
from halpiee.studies.study import Study as Study
from halpiee.studies.study import names as names
from halpiee.studies.study import read as read
