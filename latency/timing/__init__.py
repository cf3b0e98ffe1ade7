"""How long one call, one network or many networks in turns take."""
