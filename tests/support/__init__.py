"""What the tests share. Fixtures live in these modules and are named as plugins in `tests/conftest.py`."""
