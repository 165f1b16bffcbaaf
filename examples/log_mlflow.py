# log.command = ["python3", "examples/log_mlflow.py"]: a run's metrics in MLflow (pip install mlflow).
import json, os, pathlib, sys
import mlflow

run = pathlib.Path(os.environ["TEMPERING_RUN"])
mlflow.set_experiment("tempering")
same = f"tags.tempering = '{os.environ['TEMPERING_RUN_ID']}'"
known = mlflow.search_runs(filter_string=same, output_format="list")
with mlflow.start_run(run_id=known[0].info.run_id if known else None, run_name=run.name):
    mlflow.set_tag("tempering", os.environ["TEMPERING_RUN_ID"])
    mlflow.log_artifact(run / "config.toml")
    for line in sys.stdin:
        row = json.loads(line)
        # MLflow's file store cannot hold both "entropy" and "entropy/sampling".
        numbers = {name.replace("/", "."): value for name, value in row.items() if isinstance(value, (int, float))}
        mlflow.log_metrics(numbers, step=row["step"])
