"""Is pruning worth it? Contestants trained alike, at equal measured latency, over seeds; see ``halpiee compare``."""
