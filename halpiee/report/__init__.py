"""What a run leaves for people: tables, plots and a page."""
