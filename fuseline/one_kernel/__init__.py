"""One kernel alone: the script that a dump has beside it, and what that does."""
