"""Make a network meet a latency on a device, and keep as much accuracy as that latency allows."""
