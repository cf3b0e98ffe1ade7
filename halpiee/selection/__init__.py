"""Which units to keep within a budget, with a certificate."""
