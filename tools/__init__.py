"""Programs that users and benchmarks run; nothing imports them."""
