"""Where a profile comes from: one module per runtime, imported only when used."""
