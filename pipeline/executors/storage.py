"""Whether a machine of a cluster sees what the run reads and writes."""

from pathlib import Path

from pydantic import ValidationError

from pipeline.plan import Plan
from pipeline.run_folder import RUN_FILE, read_run
from pipeline.settings import Job, PipelineError


def require_shared(job: Job, plan: Plan, node: str) -> None:
    """Raises PipelineError, naming the node, where --out is not the run's own folder or the input is not there."""
    path = job.out / RUN_FILE
    try:
        found = read_run(path).plan
    except (OSError, ValidationError):
        found = None
    if found != plan:
        raise PipelineError(f"node {node} does not see {path} of this run; give an --out that all nodes share")
    for root in sorted({file.root for file in plan.files if "://" not in file.root}):
        if not Path(root).is_dir():
            raise PipelineError(f"node {node} does not see the input folder {root}; keep it where all nodes see it")
