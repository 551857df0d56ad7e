"""How long a test waits for an event. No test measures time: a wait ends when what it waits for has come."""

SECONDS = (
    300  # on the busiest machine; what has not come by then will not come, and several waits fit into a run
)
MILLISECONDS = 1000 * SECONDS
