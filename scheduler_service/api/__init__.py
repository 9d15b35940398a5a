"""Requests: the servicers. Each method parses its request, makes one call and converts the answer."""
