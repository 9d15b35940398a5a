"""Stage 4, ITERATE: feeds journal events to process code and appends what it asks for."""
