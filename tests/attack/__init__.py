"""Attacks on the wire: whatever is sent, the services answer, in time and in their own words."""
