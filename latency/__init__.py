"""How long does it take? Ops, backends, profiles and measurements; imports no torch."""
