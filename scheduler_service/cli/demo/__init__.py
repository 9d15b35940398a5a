"""`backburner demo`: an example process on a real git repository, and what drives it."""
