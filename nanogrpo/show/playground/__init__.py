"""The playground: GRPO in a page, in plain JavaScript, and the same run in Python."""
