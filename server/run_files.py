"""The files of a run folder, by name.

A reader of a run (status, report, another program) needs the names without all that
makes the files.
"""

PLAN_FILE = "plan.toml"
"""The effective plan."""
LOCK_FILE = "lock"
"""Held by the process that works in the folder."""
STARTED_FILE = "started.json"
"""When and how the run began."""
ARMS_FILE = "arms.json"
"""What is to be run."""
JOURNAL_FILE = "journal.sqlite"
"""One row per round."""
ARM_RECORD_FILE = "arm.json"
"""How an arm went, once it has ended."""
FINAL_FILE = "final.safetensors"
"""Parameters of its final model: of the best or the last round, as the plan says."""
ROSTERS_FILE = "rosters.json"
"""Who took part: site to its introduction."""
