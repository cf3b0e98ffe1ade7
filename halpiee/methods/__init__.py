"""The methods of the papers as recipes of phases, driven from an optimizer's step hooks."""
