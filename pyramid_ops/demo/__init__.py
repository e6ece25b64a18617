"""Pictures that show what the ops do, for the command line."""
