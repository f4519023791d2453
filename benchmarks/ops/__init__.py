"""The suites of operators: cases, inputs and contestants; one file for each operator."""
