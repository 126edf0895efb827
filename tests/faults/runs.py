"""The run that the tests of faults kill, split and resume."""

# 20 steps; a state every 0.3 s.
RUN = {"preset": "micro", "kimg": 0.16, "state_minutes": 0.005}
FLAGS = ("--batch=8", "--batch-gpu=4", "--tick=0.04", "--precision=fp32")
