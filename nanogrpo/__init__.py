"""nanogrpo: GRPO from scratch, one small file for each step of the flow.

    prompt -> rollout -> reward -> advantage -> loss -> step -> log -> plot
"""

__version__ = "0.1.0"
