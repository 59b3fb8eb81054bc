"""What proves a back end: the contract suites, run against it."""
