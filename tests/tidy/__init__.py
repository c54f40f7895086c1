"""The rules of the house as code: each takes a Tree and yields what breaks it. tests/test_tidy.py runs them."""
