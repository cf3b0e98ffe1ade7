"""What can be removed: coupled units of a model, and their exact removal."""
