# log.command = ["python3", "examples/log_wandb.py"]: a run's metrics in Weights & Biases (pip install wandb).
import json, os, pathlib, sys, tomllib
import wandb

run = pathlib.Path(os.environ["TEMPERING_RUN"])
wandb.init(project="tempering", name=run.name, id=os.environ["TEMPERING_RUN_ID"], resume="allow",
           config=tomllib.loads((run / "config.toml").read_text()))
wandb.define_metric("*", step_metric="step")
for line in sys.stdin:
    wandb.log({name: value for name, value in json.loads(line).items() if isinstance(value, (int, float))})
wandb.finish()
