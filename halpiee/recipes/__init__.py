"""The papers' own settings as YAML files, and how such a file is read.

A file holds options of ``halpiee train``, as they are typed there without the dashes, one a line. Shares may be
written as they are printed (``drops: [80/160, 120/160]``): they scale with ``--epochs``. Beside them ``about`` says
what it is, ``source`` where it is printed, and ``open`` lists what that leaves open and what is different here.
"""

from halpiee.recipes.recipe import Recipe, names, read

__all__ = ["Recipe", "names", "read"]
