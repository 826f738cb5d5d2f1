"""The report as one page of HTML: what is on it, how it is found out, and how it is written."""
