"""`prescreen`: the one console script."""

import click

from jobs.benchmark import benchmark_command
from jobs.commit import commit_command
from jobs.evaluate import evaluate_command
from jobs.import_seed import import_seed_command
from jobs.manifest import manifest_command
from jobs.plan import plan_command
from jobs.predict import predict_command
from jobs.prepare import prepare_command
from jobs.report import report_command
from jobs.rethreshold import rethreshold_command
from jobs.runs import runs_command
from jobs.sample import sample_command
from jobs.score import score_command
from jobs.show_model import show_model_command
from jobs.train import train_command
from jobs.tune import tune_command
from jobs.verify import verify_command
from jobs.web import web_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prescreen")
def cli():
    """Scores archives of chest X-rays in batches.

    Research prototype, not for diagnosis.
    """


for _command in (
    sample_command,
    manifest_command,
    score_command,
    plan_command,
    commit_command,
    runs_command,
    verify_command,
    report_command,
    rethreshold_command,
    predict_command,
    web_command,
    prepare_command,
    train_command,
    evaluate_command,
    tune_command,
    import_seed_command,
    show_model_command,
    benchmark_command,
):
    cli.add_command(_command)
