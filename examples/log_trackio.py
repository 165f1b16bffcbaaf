# log.command = ["python3", "examples/log_trackio.py"]: a run's metrics in Trackio (pip install trackio).
import json, os, pathlib, sys, tomllib
import trackio

run = pathlib.Path(os.environ["TEMPERING_RUN"])
trackio.init(project="tempering", name=f"{run.name}-{os.environ['TEMPERING_RUN_ID']}", resume="allow",
             config=tomllib.loads((run / "config.toml").read_text()))
for line in sys.stdin:
    row = json.loads(line)
    step = row.pop("step")
    trackio.log({name: value for name, value in row.items() if isinstance(value, (int, float))}, step=step)
trackio.finish()
