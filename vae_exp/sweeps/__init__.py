"""Many runs from one command line: their plan, their jobs, and the table at the end."""
