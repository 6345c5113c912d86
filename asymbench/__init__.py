"""asymbench: what other packages build on. The contract tests for methods are in ``testing``."""
