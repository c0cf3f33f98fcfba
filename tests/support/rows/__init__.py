"""The rows of the behaviour table by subject; `tests.support.packets` puts them together and says how to run them."""
