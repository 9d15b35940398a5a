"""`backburner demo agents`: background agents on a real repository."""
