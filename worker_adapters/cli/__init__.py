"""The command line ``worker-adapters``: a file for each command, and what they share. Needs the extra ``cli``."""
