"""Files that were not written by halpiee, or not left as it wrote them: one sentence each, nothing run or written."""
