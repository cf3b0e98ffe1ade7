"""Export and the proof that what is exported is what was trained."""
