"""The protocol: runs in processes of their own, results as lines of JSON, scores and the report from these alone."""
